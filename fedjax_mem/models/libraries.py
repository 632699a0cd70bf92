"""Models from equinox and haiku, which are imported only where they are used.

Convolutions are replaced on a CPU, and batch normalisation is refused, as in `adapters.py`.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp

from fedjax_mem.core import Tree, keys
from fedjax_mem.models import base
from fedjax_mem.tasks import LearningTask

if TYPE_CHECKING:
  import equinox
  import haiku


def from_equinox(
  module: 'Callable[[jax.Array], equinox.Module]',
  input_shape: tuple[int, ...],
  num_classes: int,
  *,
  name: str | None = None,
  input_dtype: Any = jnp.float32,
  padding_id: int | None = None,
  task: LearningTask | str | None = None,
) -> base.Model:
  """Returns the model of an `equinox.Module` that maps ONE example x [...] to its logits.

  All arrays of floats in it are parameters, and are trained. In training, if its `__call__` has an
  argument `key`, each example gets one of its own; in evaluation it is in inference mode.

  >>> import equinox as eqx
  >>> model = from_equinox(lambda key: eqx.nn.Linear(2, 3, key=key), (2,), 3)
  >>> model.apply(model.init(jax.random.key(0)), jnp.ones((5, 2))).shape
  (5, 3)

  Args:
    module: key -> module, so that parameters can be drawn from the run's seed.
    input_shape: shape of one example.
    num_classes: K, number of classes, or of other outputs.
    name: name in tables and messages; None: the module's class.
    input_dtype: dtype of x.
    padding_id: for sequences, the label of padding tokens, which do not count; None: no padding.
    task: what it learns, or its name; None: that of the data.

  Raises:
    ValueError: `module` makes no module, the module keeps state or arrays that are not of floats,
      or its output does not fit.
  """
  import equinox as eqx

  if isinstance(module, eqx.Module) or not callable(module):
    raise ValueError(f'module must be a function key -> equinox.Module, got {module!r}.')
  made = eqx.filter_eval_shape(module, keys.like())
  if not isinstance(made, eqx.Module):
    raise ValueError(
      f'module must be a function key -> equinox.Module, got one that makes {made!r}.'
    )
  name = name or type(made).__name__
  _check_arrays(name, made)
  takes_key = 'key' in inspect.signature(type(made).__call__).parameters
  # All but the arrays; of these it holds shapes alone.
  static = eqx.filter(made, lambda x: not isinstance(x, jax.ShapeDtypeStruct))

  def init(key: jax.Array) -> Tree:
    return eqx.filter(module(key), eqx.is_inexact_array)

  def apply(params: Tree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    whole = eqx.nn.inference_mode(eqx.combine(params, static), value=key is None)
    if key is None or not takes_key:
      return cast(jax.Array, jax.vmap(whole)(x))
    each = jax.random.split(key, len(x))
    return cast(jax.Array, jax.vmap(lambda x, key: whole(x, key=key))(x, each))

  how: dict[str, Any] = {'input_dtype': input_dtype, 'padding_id': padding_id, 'task': task}
  return base.build(name, init, apply, input_shape, num_classes, **how)


def _check_arrays(name: str, made: 'equinox.Module') -> None:
  """Raises `ValueError` if a module keeps state, or arrays that are not of floats."""
  import equinox as eqx

  held = jax.tree_util.tree_flatten_with_path(
    made, is_leaf=lambda x: isinstance(x, eqx.nn.StateIndex)
  )[0]
  for path, leaf in held:
    where = jax.tree_util.keystr(path, simple=True, separator='.')
    if isinstance(leaf, eqx.nn.StateIndex):
      raise ValueError(
        f'module must keep no state, such as the statistics of batch normalisation, got {name!r} '
        f'with {where!r}: use GroupNorm.'
      )
    if isinstance(leaf, jax.ShapeDtypeStruct) and not jnp.issubdtype(leaf.dtype, jnp.inexact):
      raise ValueError(
        f'module must have arrays of floats, got {name!r} with {where!r}: {leaf.dtype}.'
      )


def from_haiku(
  transformed: 'haiku.Transformed',
  input_shape: tuple[int, ...],
  num_classes: int,
  *,
  training: str | None = None,
  name: str = 'haiku',
  input_dtype: Any = jnp.float32,
  padding_id: int | None = None,
  task: LearningTask | str | None = None,
) -> base.Model:
  """Returns the model of `haiku.transform(f)`, where f maps x [B, ...] to logits.

  >>> import haiku as hk
  >>> model = from_haiku(hk.transform(lambda x: hk.Linear(3)(x)), (2,), 3)
  >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
  {'linear': {'b': (3,), 'w': (2, 3)}}

  Args:
    transformed: what `haiku.transform` makes.
    input_shape: shape of one example.
    num_classes: K, number of classes, or of other outputs.
    training: name of the argument of f that is True in training and False in evaluation; None: it
      has none.
    name: name in tables and messages.
    input_dtype: dtype of x.
    padding_id: for sequences, the label of padding tokens, which do not count; None: no padding.
    task: what it learns, or its name; None: that of the data.

  Raises:
    ValueError: it is not what `haiku.transform` makes, such as a module with state, or its output
      does not fit.
  """
  import haiku as hk

  if not isinstance(transformed, hk.Transformed):
    raise ValueError(
      'transformed must be what haiku.transform makes, without state such as the statistics of '
      f'batch normalisation, got {type(transformed).__name__}.'
    )
  if not isinstance(training, str | None):
    raise ValueError(f'training must be the name of an argument, got {training!r}.')

  def mode(on: bool) -> dict[str, bool]:
    return {} if training is None else {training: on}

  def init(key: jax.Array) -> Tree:
    x = jnp.zeros((1, *input_shape), input_dtype)
    return cast(Tree, transformed.init(key, x, **mode(False)))

  def apply(params: Tree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return cast(jax.Array, transformed.apply(params, key, x, **mode(key is not None)))

  how: dict[str, Any] = {'input_dtype': input_dtype, 'padding_id': padding_id, 'task': task}
  return base.build(name, init, apply, input_shape, num_classes, **how)
