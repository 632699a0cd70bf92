"""Running statistics of batch normalisation in flax modules: what a forward pass makes of them.

In training, mean and variance are those of the batch's own examples. The last batch of a client is
padded; padded rows do not enter: each `nn.BatchNorm` gets their mask.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from flax import traverse_util

from fedjax_mem.core import Tree, keys
from fedjax_mem.core.running import MEAN, PARAMS, STATISTICS, VARIANCE

# (trained parameters, statistics, x [B, ...], mask [B], key) -> (outputs, new statistics)
Forward = Callable[[Tree, Tree, jax.Array, jax.Array, jax.Array], tuple[jax.Array, Tree]]
# whether it trains -> arguments of a module's `__call__`
Settings = Callable[[bool], dict[str, Any]]


class Kept(NamedTuple):
  """What becomes of a model's running statistics.

  Attributes:
    how: 'average': they are part of the update; 'local': they stay with each client.
    forward: the pass in training.
  """

  how: str
  forward: Forward


def of_linen(
  module: nn.Module,
  name: str,
  how: str,
  settings: Settings,
  x: jax.ShapeDtypeStruct,
  first: Callable[[jax.Array], Tree],
) -> Kept | None:
  """Returns what becomes of a linen module's statistics, or None if it keeps none.

  It looks at the module's layers on shapes, and computes nothing.

  Args:
    module: with the collections 'params' and perhaps 'batch_stats'.
    name: its name.
    how: 'refuse', or as in `Kept`.
    settings: of the module.
    x: shape of a batch.
    first: key -> the module's first variables.

  Raises:
    ValueError: statistics that are refused, that are not of an `nn.BatchNorm` over the batch, or
      that are used where they must not be.
  """
  key = keys.like()
  try:
    if how == 'refuse':
      state = jax.eval_shape(first, key)
    else:
      state = jax.eval_shape(lambda key, x: module.init(key, x, **settings(False)), key, x)
  except (TypeError, ValueError):
    return None  # it does not take such inputs, which is refused where the model is built
  if (how == 'refuse') == (STATISTICS not in state):
    if how != 'refuse':
      _check(module, state, settings, x, key)
      return Kept(how, functools.partial(_forward, module, settings))
    return None
  if how == 'refuse':
    raise ValueError(
      f"statistics must be 'average' or 'local' for batch normalisation in {name!r} "
      "('batch_stats'), got 'refuse': statistics of clients' batches are no parameters, and an "
      'average of them may be of no use to any client; GroupNorm keeps none.'
    )
  raise ValueError(f"statistics must be 'refuse' for {name!r}, which keeps none, got {how!r}.")


def _forward(
  module: nn.Module,
  settings: Settings,
  params: Tree,
  statistics: Tree,
  x: jax.Array,
  mask: jax.Array,
  key: jax.Array,
) -> tuple[jax.Array, Tree]:
  """Returns (outputs, new statistics) of a module in training, see `Forward`."""
  # A batch without an example, whose step is not taken, must not divide by 0.
  rows = mask | ~mask.any()

  def masked(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if not _normalises(context):
      return call(*args, **kwargs)
    real, own = rows.reshape((-1,) + (1,) * (args[0].ndim - 1)), kwargs.get('mask')
    return call(*args, **{**kwargs, 'mask': real if own is None else real & own})

  variables, rngs = {PARAMS: params, STATISTICS: statistics}, {'dropout': key}
  with nn.intercept_methods(masked):
    outputs, new = module.apply(variables, x, rngs=rngs, mutable=[STATISTICS], **settings(True))
  return outputs, new[STATISTICS]


def _normalises(context: Any) -> bool:
  return isinstance(context.module, nn.BatchNorm) and context.method_name == '__call__'


def _check(
  module: nn.Module, state: Tree, settings: Settings, x: jax.ShapeDtypeStruct, key: Any
) -> None:
  """Raises `ValueError` for statistics that padding would change, or that are used wrongly."""
  seen: set[tuple[str, ...]] = set()

  def look(training: bool, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    if _normalises(context):
      _check_layer(context.module, training, x.shape[0], args, kwargs)
      seen.add(context.module.path)
    return call(*args, **kwargs)

  def one(training: bool, state: Tree, x: jax.Array, key: jax.Array) -> Any:
    with nn.intercept_methods(functools.partial(look, training)):
      how = {'mutable': [STATISTICS] if training else False, **settings(training)}
      return module.apply(state, x, rngs={'dropout': key}, **how)

  for training in (True, False):
    jax.eval_shape(functools.partial(one, training), state, x, key)
  for path in traverse_util.flatten_dict(state[STATISTICS]):
    if path[:-1] not in seen or path[-1] not in (MEAN, VARIANCE):
      raise ValueError(
        f'module must keep no statistics but those of nn.BatchNorm, got {"/".join(path)!r}.'
      )


def _check_layer(norm: nn.BatchNorm, training: bool, batch: int, args: Any, kwargs: Any) -> None:
  """Raises `ValueError` unless a layer takes the right statistics, over rows that have a mask."""
  where, x = '/'.join(norm.path), args[0]
  running = args[1] if len(args) > 1 else kwargs.get('use_running_average')
  running = norm.use_running_average if running is None else running
  if running is not None and bool(running) == training:
    raise ValueError(
      f'module must use running statistics in evaluation and nowhere else, got {where!r}: give its '
      '__call__ an argument train, and the layer use_running_average=not train.'
    )
  axes = (norm.axis,) if isinstance(norm.axis, int) else norm.axis
  over_rows = x.ndim > 1 and x.shape[0] == batch and all(a % x.ndim for a in axes)
  if not over_rows or norm.axis_name is not None:
    raise ValueError(
      f'module must normalise over the rows [B, ...] of a batch, got {where!r} with an input '
      f'{x.shape!r} of B = {batch}: padded rows could not be left out.'
    )
