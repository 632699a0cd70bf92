"""Tasks: what a model learns, with its loss and its scores, one a file.

A task is not the protocol's `core.Task`, which is a client's work in a round.
"""

from collections.abc import Callable

from fedjax_mem.core import validate
from fedjax_mem.tasks._base import LearningTask
from fedjax_mem.tasks.classification import Classification, cross_entropy
from fedjax_mem.tasks.multi_label import MultiLabel
from fedjax_mem.tasks.next_token import NextToken
from fedjax_mem.tasks.regression import Regression

TASKS: dict[str, Callable[..., LearningTask]] = {
  'classification': Classification,
  'multi_label': MultiLabel,
  'next_token': NextToken,
  'regression': Regression,
}


def as_task(task: LearningTask | str) -> LearningTask:
  """Returns a task, given as it is or by its name.

  >>> as_task('regression')
  Regression()

  Raises:
    ValueError: neither a task nor a name of `TASKS`.
  """
  if isinstance(task, LearningTask):
    return task
  if not isinstance(task, str):
    raise ValueError(f'task must be a LearningTask or the name of one, got {task!r}.')
  return TASKS[validate.one_of(TASKS, task=task)]()


__all__ = (
  'TASKS',
  'Classification',
  'LearningTask',
  'MultiLabel',
  'NextToken',
  'Regression',
  'as_task',
  'cross_entropy',
)
