"""Losses of models that keep running statistics (batch normalisation) beside their parameters.

The parameters of such a model are {'params': what gradients train, 'batch_stats': the statistics}.
Training sets the statistics to what its forward pass gives: no gradient, no optimizer and no weight
decay touches them.

The statistics are sent and averaged with all else, or they are local: then the whole of a batch
normalisation, its statistics, scale and bias, stays with each client and is never sent (FedBN: Li
et al. 2021, arXiv 2102.07623, Algorithm 1).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core.examples import Batch
from fedjax_mem.core.tree import Tree

# What may become of running statistics.
HANDLINGS = ('refuse', 'average', 'local')
PARAMS, STATISTICS = 'params', 'batch_stats'
MEAN, VARIANCE = 'mean', 'var'
# (trained parameters, statistics, batch, mask [B], key) -> (losses [B], new statistics)
TrainedFn = Callable[[Tree, Tree, Batch, jax.Array, Any], tuple[jax.Array, Tree]]


@dataclasses.dataclass(frozen=True)
class Running:
  """A loss (params, batch, key=None) -> [B] whose model keeps running statistics.

  Called it is that of evaluation, by the running statistics, and has no gradient. An algorithm that
  trains such a model calls `trained`.

  Attributes:
    evaluated: (params, batch) -> losses [B], by the running statistics.
    trained: the losses by the statistics of the examples in a mask, and the running statistics
      after them.
    local: whether each client keeps its own.
  """

  evaluated: Callable[[Tree, Batch], jax.Array]
  trained: TrainedFn
  local: bool = False

  def __call__(self, params: Tree, batch: Batch, key: Any = None) -> jax.Array:
    """Returns the losses in evaluation.

    Raises:
      ValueError: a key, which means training; the statistics are local, so that the server's
        parameters alone have no loss; or, where it is traced, a gradient is taken.
    """
    if key is not None or self.local:
      raise self._refused()
    return self.evaluated(jax.tree.map(self._constant, params), batch)

  def _refused(self) -> ValueError:
    return ValueError(
      "model.statistics must be 'refuse' for algorithms but fedavg and fedprox"
      + (', and for samplers by losses' if self.local else '')
      + f', got {"local" if self.local else "average"!r}: one of your own trains such a model by '
      'loss.trained, which returns new statistics as well; GroupNorm keeps none.'
    )

  def _constant(self, x: jax.Array) -> jax.Array:
    """Returns x, and raises where it is differentiated."""

    @jax.custom_jvp
    def same(x: jax.Array) -> jax.Array:
      return x

    def refuse(primals: Any, tangents: Any) -> Any:
      raise self._refused()

    same.defjvp(refuse)
    kept: jax.Array = same(x)
    return kept


def is_local(loss: Any) -> bool:
  """Returns whether each client keeps a part of the model."""
  return isinstance(loss, Running) and loss.local


def split(loss: Any, params: Tree) -> tuple[Tree, Tree]:
  """Returns (what gradients train, running statistics); the latter are () of any other loss."""
  return (params[PARAMS], params[STATISTICS]) if isinstance(loss, Running) else (params, ())


def join(loss: Any, trained: Tree, statistics: Tree) -> Tree:
  """Returns the parameters that `split` has taken apart."""
  return {PARAMS: trained, STATISTICS: statistics} if isinstance(loss, Running) else trained


def divide(loss: Any, params: Tree) -> tuple[Tree, Tree]:
  """Returns (what is sent, what stays with each client); the latter is () unless it is local.

  Both can be `split`: they are trees like the parameters, without the leaves of the other.
  """
  if not is_local(loss):
    return params, ()
  # All that is held beside statistics is of the same layer.
  layers = {path[:-1] for path in _leaves(params[STATISTICS])}
  held = _leaves(params[PARAMS])
  sent = {path: x for path, x in held.items() if path[:-1] not in layers}
  own = {path: x for path, x in held.items() if path[:-1] in layers}
  whole = {PARAMS: _nested(own), STATISTICS: params[STATISTICS]}
  return {PARAMS: _nested(sent), STATISTICS: {}}, whole


def unite(loss: Any, sent: Tree, own: Tree) -> Tree:
  """Returns the parameters that `divide` has taken apart."""
  if not is_local(loss):
    return sent
  return _nested({**_leaves(sent), **_leaves(own)})


def proper(statistics: Tree, before: Tree) -> Tree:
  """Returns the statistics, and of a variance (a leaf named 'var') that is negative the one before.

  A variance of 0 instead would divide by next to nothing.
  """

  def one(path: tuple[Any, ...], x: jax.Array, old: jax.Array) -> jax.Array:
    return jnp.where(x < 0, old, x) if getattr(path[-1], 'key', None) == VARIANCE else x

  found: Tree = jax.tree_util.tree_map_with_path(one, statistics, before)
  return found


def _leaves(nested: Tree, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
  """Returns the leaves of nested dicts by their paths."""
  if not isinstance(nested, dict):
    return {path: nested}
  return {k: x for name, part in nested.items() for k, x in _leaves(part, (*path, name)).items()}


def _nested(leaves: dict[tuple[str, ...], Any]) -> Tree:
  """Returns nested dicts of the leaves at their paths."""
  made: dict[str, Any] = {}
  for (*above, last), x in leaves.items():
    part = made
    for name in above:
      part = part.setdefault(name, {})
    part[last] = x
  return made
