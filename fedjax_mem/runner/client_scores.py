"""Scores of the server's model on what clients hold out: means, the worst tenth, the spread."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from fedjax_mem.config.parts import Parts
from fedjax_mem.core import Personal, Tree
from fedjax_mem.engine import per_example, personal
from fedjax_mem.engine.evaluate import MeasureFn
from fedjax_mem.runner.scores import model_scores, of_model
from fedjax_mem.tasks import LearningTask

# Over the clients: the mean of their means; the mean over all examples; the mean of the worst tenth
# of the clients; the standard deviation of their means.
_OVER = ('mean', 'pooled', 'worst', 'spread')
FILE = 'client_scores.json'
_COUNTS = ('clients_evaluated', 'clients_left_out')


def names(parts: Parts) -> tuple[str, ...]:
  """Returns the names of the scores, without computing one; () if nothing is held out."""
  if parts.data.held is None:
    return ()
  return (*(_named(name, over) for name in model_scores(parts) for over in _OVER), *_COUNTS)


class Scorer:
  """Scores the server's model on what the clients hold out, or each client's own if it has one.

  Attributes:
    task: what the model learns, or None.
  """

  def __init__(self, parts: Parts, batch_size: int, mesh: Mesh):
    """Compiles nothing yet.

    Args:
      parts: parts of the experiment.
      batch_size: examples in a batch on a device.
      mesh: the devices.
    """
    self.task, self._held = parts.model.task, parts.data.held
    own, of = personal.fact(parts.layers), of_model(parts)
    if self._held is not None:
      more: dict[str, Any] = {'batch_size': batch_size, 'mesh': mesh}
      if own is not None:
        more['offsets'] = self._held.offsets
      self._evaluate = per_example(
        of if own is None else _by_own(of, own), parts.data.arrays, self._held.index, **more
      )

  def __call__(self, params: Tree, rows: Tree = None) -> dict[str, float]:
    """Returns the scores over clients; {} if nothing is held out.

    Args:
      params: the parameters that are scored.
      rows: what clients keep of them (`personal.rows`); None: nothing.
    """
    if self._held is None:
      return {}
    values, kept = self._evaluate(params if rows is None else (params, rows))
    return over_clients(values, kept, self._held.offsets, self.task)

  def each(self, params: Tree, rows: Tree = None) -> tuple[str, np.ndarray]:
    """Returns (name, [n]) of the task's main score, of each client on whose examples it is defined.

    Without a task it is the accuracy, or the loss; without held-out examples there are none. The
    arguments are those of a call.
    """
    if self._held is None:
      return 'accuracy', np.zeros(0)
    values, kept = self._evaluate(params if rows is None else (params, rows))
    found = of_clients(values, kept, self._held.offsets, self.task)
    main = 'accuracy' if self.task is None else self.task.main
    name = main if main in found else 'loss'
    scores = found[name][0]
    return name, scores[~np.isnan(scores)]

  def less_is_better(self, name: str) -> bool:
    """Returns whether a client is worst off where a score is largest."""
    return name == 'loss' or (self.task is not None and name in self.task.less)


def _by_own(of: MeasureFn, own: Personal) -> Callable[..., Any]:
  """Returns ((parameters, what clients keep), batch, client) -> what `of` gives by the client's."""

  def measure(both: tuple[Tree, Tree], batch: dict[str, Any], client: Any) -> Any:
    params, rows = both
    return of(own.of(params, rows, client), batch)

  return measure


def write(folder: pathlib.Path, scorer: Scorer, found: tuple[str, np.ndarray], round: int) -> None:
  """Writes `client_scores.json` for the report if clients hold examples out.

  Args:
    folder: folder of the run.
    scorer: of the clients.
    found: the name and the scores, from its `each`.
    round: of the scores.
  """
  name, scores = found
  if not len(scores):
    return
  said = {'score': name, 'less_is_better': scorer.less_is_better(name), 'round': round}
  text = json.dumps({**said, 'values': scores.tolist()})
  (folder / FILE).write_text(text + '\n', encoding='utf-8')


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
  number = int((counts > 0).sum())
  scores: dict[str, float] = {}
  for name, (means, pooled) in of_clients(values, kept, offsets, task).items():
    less = name == 'loss' or (task is not None and name in task.less)
    scores |= _over(name, means[~np.isnan(means)] if name not in values else means, pooled, less)
  return {**scores, **dict(zip(_COUNTS, (number, len(counts) - number), strict=True))}


def of_clients(
  values: dict[str, np.ndarray],
  kept: dict[str, np.ndarray],
  offsets: np.ndarray,
  task: LearningTask | None = None,
) -> dict[str, tuple[np.ndarray, float]]:
  """Returns score -> ([n] float64, of each client that holds examples out; of all examples).

  The arguments are those of `over_clients`.
  """
  counts = np.diff(offsets)
  some, total = counts > 0, int(offsets[-1])
  found: dict[str, tuple[np.ndarray, float]] = {}
  for name, one in values.items():
    exact = one.astype(np.float64)
    found[name] = np.add.reduceat(exact, offsets[:-1][some]) / counts[some], exact.mean()
  if task is not None and kept:
    each = task.scores(kept, np.concatenate([offsets[:-1][some], [total]]))
    whole = task.scores(kept, np.array([0, total]))
    found |= {name: (x, float(whole[name][0])) for name, x in each.items()}
  return found


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
