"""Losses of models that keep running statistics (batch normalisation) beside their parameters.

The parameters of such a model are {'params': what gradients train, 'batch_stats': the statistics}.
Training sets the statistics to what its forward pass gives: no gradient, no optimizer and no weight
decay touches them.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core.examples import Batch
from fedjax_mem.core.tree import Tree

# What may become of running statistics.
HANDLINGS = ('refuse', 'average')
PARAMS, STATISTICS = 'params', 'batch_stats'
MEAN, VARIANCE = 'mean', 'var'
# (trained parameters, statistics, batch, mask [B], key) -> (losses [B], new statistics)
TrainedFn = Callable[[Tree, Tree, Batch, jax.Array, Any], tuple[jax.Array, Tree]]


@dataclasses.dataclass(frozen=True)
class Running:
  """A loss (params, batch, key=None) -> [B] whose model keeps running statistics.

  Called without a key it is that of evaluation, by the running statistics. An algorithm that trains
  such a model calls `trained`.

  Attributes:
    evaluated: (params, batch) -> losses [B], by the running statistics.
    trained: the losses by the statistics of the examples in a mask, and the running statistics
      after them.
  """

  evaluated: Callable[[Tree, Batch], jax.Array]
  trained: TrainedFn

  def __call__(self, params: Tree, batch: Batch, key: Any = None) -> jax.Array:
    """Returns the losses in evaluation; raises `ValueError` for a key, which means training."""
    if key is not None:
      raise ValueError(
        'loss must be trained by an algorithm that keeps the running statistics of its model, '
        'fedavg or fedprox, got one that takes only losses.'
      )
    return self.evaluated(params, batch)


def split(loss: Any, params: Tree) -> tuple[Tree, Tree]:
  """Returns (what gradients train, running statistics); the latter are () of any other loss."""
  return (params[PARAMS], params[STATISTICS]) if isinstance(loss, Running) else (params, ())


def join(loss: Any, trained: Tree, statistics: Tree) -> Tree:
  """Returns the parameters that `split` has divided."""
  return {PARAMS: trained, STATISTICS: statistics} if isinstance(loss, Running) else trained


def proper(statistics: Tree) -> Tree:
  """Returns the statistics with every variance, a leaf named 'var', at least 0."""

  def one(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0) if getattr(path[-1], 'key', None) == VARIANCE else x

  floored: Tree = jax.tree_util.tree_map_with_path(one, statistics)
  return floored
