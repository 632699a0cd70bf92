"""Scores of the server's model on what clients hold out: means, the worst tenth, the spread."""

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from fedjax_mem.config.build import Parts
from fedjax_mem.core import Tree
from fedjax_mem.engine import per_example
from fedjax_mem.runner.scores import model_scores, of_model
from fedjax_mem.tasks import LearningTask

# Over the clients: the mean of their means; the mean over all examples; the mean of the worst tenth
# of the clients; the standard deviation of their means.
_OVER = ('mean', 'pooled', 'worst', 'spread')
_COUNTS = ('clients_evaluated', 'clients_left_out')


def names(parts: Parts) -> tuple[str, ...]:
  """Returns the names of the scores, without computing one; () if nothing is held out."""
  if parts.data.held is None:
    return ()
  return (*(_named(name, over) for name in model_scores(parts) for over in _OVER), *_COUNTS)


def scorer(parts: Parts, batch_size: int, mesh: Mesh) -> Callable[[Tree], dict[str, float]]:
  """Returns parameters -> scores of the clients; {} if nothing is held out.

  Args:
    parts: parts of the experiment.
    batch_size: examples in a batch on a device.
    mesh: the devices.
  """
  data, task = parts.data, parts.model.task
  held = data.held
  if held is None:
    return lambda params: {}
  evaluate = per_example(of_model(parts), data.arrays, held.index, batch_size=batch_size, mesh=mesh)

  def scores(params: Tree) -> dict[str, float]:
    values, kept = evaluate(params)
    return over_clients(values, kept, held.offsets, task)

  return scores


def over_clients(
  values: dict[str, np.ndarray],
  kept: dict[str, np.ndarray],
  offsets: np.ndarray,
  task: LearningTask | None = None,
) -> dict[str, float]:
  """Returns the scores of a model over clients, from what it gives for single examples.

  Means are float64. A client that holds nothing out takes no part, and is counted. The worst tenth
  are the ceil(n / 10) of n clients with the largest values of a score of which less is better, such
  as the loss; of any other, with the smallest ones. The spread is that of these clients (division
  by n). A client on whose examples a score is not defined is left out of that score.

  Reference: Li, Sanjabi, Beirami, Smith (2020), q-FFL, arXiv 1905.10497, tables of "worst 10%".

  Args:
    values: name -> [H], one an example, client after client: scores that are means.
    kept: name -> [H, ...], what the task's other scores need.
    offsets: [N+1], client i has the rows offsets[i]:offsets[i+1].
    task: what the model learns; None: it has no other scores.
  """
  counts = np.diff(offsets)
  some = counts > 0
  number, total = int(some.sum()), int(offsets[-1])
  found: dict[str, tuple[np.ndarray, float]] = {}  # score -> of each client, of all examples
  for name, one in values.items():
    exact = one.astype(np.float64)
    found[name] = np.add.reduceat(exact, offsets[:-1][some]) / counts[some], exact.mean()
  if task is not None and kept:
    each = task.scores(kept, np.concatenate([offsets[:-1][some], [total]]))
    whole = task.scores(kept, np.array([0, total]))
    found |= {name: (x, float(whole[name][0])) for name, x in each.items()}
  scores: dict[str, float] = {}
  for name, (means, pooled) in found.items():
    less = name == 'loss' or (task is not None and name in task.less)
    scores |= _over(name, means[~np.isnan(means)] if name not in values else means, pooled, less)
  return {**scores, **dict(zip(_COUNTS, (number, len(counts) - number), strict=True))}


def _over(name: str, means: np.ndarray, pooled: float, less: bool) -> dict[str, float]:
  """Returns a score over clients by the names in records; NaN where no client has it."""
  if not len(means):
    over: tuple[float, ...] = (np.nan, pooled, np.nan, np.nan)
  else:
    ordered = np.sort(means)[::-1] if less else np.sort(means)
    over = (means.mean(), pooled, ordered[: -(-len(means) // 10)].mean(), means.std())
  return {_named(name, x): float(value) for x, value in zip(_OVER, over, strict=True)}


def _named(name: str, over: str) -> str:
  return f'client_{name}_{over}'
