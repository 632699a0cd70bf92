"""Models by name, for configurations."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from fedjax_mem.core import validate
from fedjax_mem.models import base
from fedjax_mem.models.char_lstm import char_lstm
from fedjax_mem.models.cnn import cnn
from fedjax_mem.models.cnn_mcmahan import cnn_mcmahan
from fedjax_mem.models.lenet import lenet
from fedjax_mem.models.logistic import logistic
from fedjax_mem.models.mlp import mlp
from fedjax_mem.models.resnet_gn import resnet_gn
from fedjax_mem.models.transformer import transformer
from fedjax_mem.tasks import LearningTask, as_task

MODELS: dict[str, Callable[..., base.Model]] = {
  'char_lstm': char_lstm,
  'cnn': cnn,
  'cnn_mcmahan': cnn_mcmahan,
  'lenet': lenet,
  'logistic': logistic,
  'mlp': mlp,
  'resnet_gn': resnet_gn,
  'transformer': transformer,
}


def options(name: str) -> dict[str, Any]:
  """Returns the options of a model and their defaults.

  >>> options('mlp')
  {'hidden': (200, 200)}

  Args:
    name: a key of `MODELS`.

  Raises:
    ValueError: an unknown name.
  """
  validate.one_of(MODELS, model=name)
  arguments = inspect.signature(MODELS[name]).parameters.values()
  return {a.name: a.default for a in arguments if a.kind is a.KEYWORD_ONLY}


def build(
  name: str,
  input_shape: Sequence[int],
  num_classes: int,
  *,
  task: LearningTask | str | None = None,
  **given: Any,
) -> base.Model:
  """Returns the model of that name.

  >>> model = build('mlp', (8, 8, 1), 10, hidden=(32,))
  >>> params = model.init(jax.random.key(0))
  >>> sum(x.size for x in jax.tree.leaves(params))
  2410

  Args:
    name: a key of `MODELS`.
    input_shape: shape of one preprocessed example, without the batch axis.
    num_classes: K, number of classes, or of other outputs.
    task: what it learns, or its name; None: classification, or the next token.
    **given: options of the model.

  Raises:
    ValueError: an unknown name or option (the nearest is named), a bad value, or a model whose
      output does not fit the labels.
  """
  known = options(name)
  for option in given:
    if option not in known:
      raise ValueError(
        f'options of the model {name!r} must be among {sorted(known)!r}, got {option!r}.'
        f'{validate.nearest(option, known)}'
      )
  model = MODELS[name](tuple(input_shape), num_classes, **given)
  wanted = model.task if task is None else as_task(task)
  if wanted is not None:
    wanted.check_outputs(num_classes)
    model = base.fitted(model, wanted)
  # They are written with our kernels: there is nothing to replace, and looking for it takes time.
  return base.as_it_is(model)
