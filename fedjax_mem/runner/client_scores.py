"""Scores of the server's model on what clients hold out: means, the worst tenth, the spread."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_mem.config.build import Parts
from fedjax_mem.core import Tree
from fedjax_mem.engine import per_example

# Over the clients: the mean of their means; the mean over all examples; the mean of the worst tenth
# of the clients; the standard deviation of their means.
_OVER = ('mean', 'pooled', 'worst', 'spread')
_COUNTS = ('clients_evaluated', 'clients_left_out')


def names(parts: Parts) -> tuple[str, ...]:
  """Returns the names of the scores, without computing one; () if nothing is held out."""
  if parts.data.held is None:
    return ()
  batch = {
    name: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for name, x in parts.data.arrays.items()
  }
  own = jax.eval_shape(_metrics(parts), parts.params, batch)
  return (*(_named(name, over) for name in own for over in _OVER), *_COUNTS)


def scorer(parts: Parts, batch_size: int, mesh: Mesh) -> Callable[[Tree], dict[str, float]]:
  """Returns parameters -> scores of the clients; {} if nothing is held out.

  Args:
    parts: parts of the experiment.
    batch_size: examples in a batch on a device.
    mesh: the devices.
  """
  data = parts.data
  held = data.held
  if held is None:
    return lambda params: {}
  evaluate = per_example(_metrics(parts), data.arrays, held.index, batch_size=batch_size, mesh=mesh)
  return lambda params: over_clients(evaluate(params), held.offsets)


def over_clients(values: dict[str, np.ndarray], offsets: np.ndarray) -> dict[str, float]:
  """Returns the scores of a model over clients, from its scores on single examples.

  Means are float64. A client that holds nothing out takes no part, and is counted. The worst tenth
  are the ceil(n / 10) of n clients with the largest loss; of any other metric, with the smallest
  value. The spread is that of these clients (division by n).

  Reference: Li, Sanjabi, Beirami, Smith (2020), q-FFL, arXiv 1905.10497, tables of "worst 10%".

  Args:
    values: name -> [H], one an example, client after client.
    offsets: [N+1], client i has values[offsets[i]:offsets[i+1]].
  """
  counts = np.diff(offsets)
  some = counts > 0
  number = int(some.sum())
  scores: dict[str, float] = {}
  for name, one in values.items():
    exact = one.astype(np.float64)
    means = np.add.reduceat(exact, offsets[:-1][some]) / counts[some]
    ordered = np.sort(means)[::-1] if name == 'loss' else np.sort(means)
    found = (means.mean(), exact.mean(), ordered[: -(-number // 10)].mean(), means.std())
    scores |= {_named(name, over): float(x) for over, x in zip(_OVER, found, strict=True)}
  return {**scores, **dict(zip(_COUNTS, (number, len(counts) - number), strict=True))}


def _metrics(parts: Parts) -> Callable[..., Any]:
  return lambda params, batch: parts.model.metrics(params, parts.data.preprocess(batch))


def _named(name: str, over: str) -> str:
  return f'client_{name}_{over}'
