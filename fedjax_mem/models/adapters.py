"""Models from a user's own flax module, or from any pair of functions.

Batch normalisation is refused unless one says what becomes of its statistics: the mean and variance
of a client's batches are not parameters, and averages of them over clients with different data are
the statistics of no client (Hsieh et al. 2020, arXiv:1910.00189, section 5). Group normalisation
keeps no statistics. `statistics.py` has what linen modules may do with theirs.

On a CPU, convolutions and max pooling by `jax.lax`, which flax's layers use, are replaced by fast
ones with equal values when the model is traced (`fast_convolutions`). They are differentiable in
reverse mode only; `as_it_is` gives a model without them.
"""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_mem.core import Tree, tracing, validate
from fedjax_mem.core.running import HANDLINGS, PARAMS, STATISTICS
from fedjax_mem.models import base
from fedjax_mem.models.statistics import of_linen
from fedjax_mem.tasks import LearningTask

if TYPE_CHECKING:
  from flax import nnx

_BATCH_NORM = (
  "must have no batch normalisation: the statistics of a client's batches are not parameters, and "
  'averaging them over clients may break the model; use GroupNorm'
)
# Argument of a module's __call__ that switches training on -> its value in training.
_SWITCHES = {'train': True, 'training': True, 'is_training': True, 'deterministic': False}


# Rows of a batch that is only planned: a number that no other axis has tells them apart.
_ROWS = 7919


def switch(call: Callable[..., Any]) -> tuple[str, bool] | None:
  """Returns the argument that switches training on and its value in training, or None."""
  for name in inspect.signature(call).parameters:
    if name in _SWITCHES:
      return name, _SWITCHES[name]
  return None


def _initial(module: nn.Module, key: jax.Array, x: tuple[Any, Any], **named: Any) -> Any:
  """Returns the module's first variables, without its forward pass where they do not need it.

  Args:
    module: of which.
    key: PRNG key.
    x: shape and dtype of an input, which is zeros.
    **named: settings of the module.
  """
  try:
    return module.lazy_init(key, jax.ShapeDtypeStruct(*x), **named)
  except flax.errors.LazyInitError:
    return module.init(key, jnp.zeros(*x), **named)


def _parameters(state: Tree, statistics: str) -> Tree:
  """Returns the parameters of a module that keeps nothing but these and its statistics."""
  if set(state) - {STATISTICS} != {PARAMS}:
    raise ValueError(f"module must keep nothing but 'params', got {sorted(state)!r}.")
  return state[PARAMS] if statistics == 'refuse' else state


def from_linen(
  module: nn.Module,
  input_shape: tuple[int, ...],
  num_classes: int,
  *,
  name: str | None = None,
  input_dtype: Any = jnp.float32,
  padding_id: int | None = None,
  task: LearningTask | str | None = None,
  statistics: str = 'refuse',
) -> base.Model:
  """Returns the model of a `flax.linen` module that maps x [B, ...] to logits.

  If the module's `__call__` has an argument `train`, `training`, `is_training` or `deterministic`,
  it is set to training whenever `apply` gets a key; the key is the random stream 'dropout'.

  >>> model = from_linen(nn.Dense(3), (2,), 3)
  >>> params = model.init(jax.random.key(0))
  >>> model.name, model.apply(params, jnp.ones((5, 2))).shape
  ('Dense', (5, 3))

  Args:
    module: its only collections may be 'params' and, of `nn.BatchNorm`, 'batch_stats'.
    input_shape: shape of one example.
    num_classes: K, number of classes, or of other outputs.
    name: name in tables and messages; None: the module's class.
    input_dtype: dtype of x.
    padding_id: for sequences, the label of padding tokens, which do not count; None: no padding.
    task: what it learns, or its name; None: that of the data.
    statistics: of batch normalisation: 'refuse'; 'average': they are part of an update; 'local':
      they stay with each client, with scales and biases of their layers (FedBN: Li et al. 2021,
      arXiv 2102.07623). Parameters are then {'params': ..., 'batch_stats': ...}.

  Raises:
    ValueError: the module keeps state besides its parameters, its output does not fit, or its
      statistics are not those of `nn.BatchNorm` over the batch.
  """
  if not isinstance(module, nn.Module):
    raise ValueError(f'module must be a flax.linen.Module, got {module!r}.')
  name, known = name or type(module).__name__, switch(type(module).__call__)
  validate.one_of(HANDLINGS, statistics=statistics)

  def settings(training: bool) -> dict[str, Any]:
    return {} if known is None else {known[0]: known[1] == training}

  @tracing.once()
  def first(key: jax.Array) -> Any:
    return _initial(module, key, ((1, *input_shape), input_dtype), **settings(False))

  init = lambda key: _parameters(first(key), statistics)

  def apply(params: Tree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    variables = {PARAMS: params} if statistics == 'refuse' else params
    rngs = None if key is None else {'dropout': key}
    return cast(jax.Array, module.apply(variables, x, rngs=rngs, **settings(key is not None)))

  x = jax.ShapeDtypeStruct((_ROWS, *input_shape), input_dtype)
  how: dict[str, Any] = {'input_dtype': input_dtype, 'padding_id': padding_id, 'task': task}
  how['kept'] = of_linen(module, name, statistics, settings, x, first)
  return base.build(name, init, apply, input_shape, num_classes, **how)


def from_nnx(
  module: 'Callable[[nnx.Rngs], nnx.Module]',
  input_shape: tuple[int, ...],
  num_classes: int,
  *,
  name: str | None = None,
  input_dtype: Any = jnp.float32,
  padding_id: int | None = None,
  task: LearningTask | str | None = None,
) -> base.Model:
  """Returns the model of a `flax.nnx` module that maps x [B, ...] to logits.

  nnx mutates modules: each call builds one again with the parameters, and drops its changes.

  >>> from flax import nnx
  >>> model = from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs), (2,), 3)
  >>> jax.tree.map(jnp.shape, model.init(jax.random.key(0)))
  {'bias': (3,), 'kernel': (2, 3)}

  Args:
    module: a function rngs -> module (a lambda, or a class whose `__init__` takes only `rngs`), so
      that parameters can be drawn from the run's seed.
    input_shape: shape of one example.
    num_classes: K, number of classes, or of other outputs.
    name: name in tables and messages; None: the module's class.
    input_dtype: dtype of x.
    padding_id: for sequences, the label of padding tokens, which do not count; None: no padding.
    task: what it learns, or its name; None: that of the data.

  Raises:
    ValueError: `module` returns no module, the module keeps state besides its parameters and its
      random streams, or its output does not fit.
  """
  from flax import nnx  # imported here: it is slow to import, and few models need it

  if isinstance(module, nnx.Module) or not callable(module):
    raise ValueError(f'module must be a function rngs -> nnx.Module, got {module!r}.')
  made = nnx.eval_shape(lambda: module(nnx.Rngs(0)))
  if not isinstance(made, nnx.Module):
    raise ValueError(f'module must be a function rngs -> nnx.Module, got one that makes {made!r}.')
  name = name or type(made).__name__
  _check_state(name, made)

  def init(key: jax.Array) -> Tree:
    params = nnx.state(module(nnx.Rngs(key)), nnx.Param)
    return nnx.to_pure_dict(params)

  apply = functools.partial(_apply_nnx, module)
  how: dict[str, Any] = {'input_dtype': input_dtype, 'padding_id': padding_id, 'task': task}
  return base.build(name, init, apply, input_shape, num_classes, **how)


def _apply_nnx(
  module: 'Callable[[nnx.Rngs], nnx.Module]',
  params: Tree,
  x: jax.Array,
  key: jax.Array | None = None,
) -> jax.Array:
  """Returns the outputs of a module that is built anew with its parameters."""
  from flax import nnx

  built = module(nnx.Rngs(0 if key is None else key))
  state = nnx.state(built, nnx.Param)
  nnx.replace_by_pure_dict(state, params)
  nnx.update(built, state)
  if key is None:
    built.eval()
  else:
    built.train()
  logits: jax.Array = built(x)
  return logits


def _check_state(name: str, module: 'nnx.Module') -> None:
  """Raises `ValueError` if a module has state besides its parameters and its random streams."""
  from flax import nnx

  known = (nnx.Param, nnx.RngState)
  for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Not(nnx.Any(*known)))):
    if isinstance(leaf, nnx.BatchStat):
      raise ValueError(f'module {_BATCH_NORM}, got {name!r} with {path!r}.')
    raise ValueError(f'module must keep nothing but nnx.Param, got {name!r} with {path!r}.')


def from_functions(
  init: Callable[[jax.Array], Tree],
  apply: Callable[..., jax.Array],
  input_shape: tuple[int, ...],
  num_classes: int,
  *,
  name: str = 'custom',
  input_dtype: Any = jnp.float32,
  padding_id: int | None = None,
  task: LearningTask | str | None = None,
) -> base.Model:
  """Returns the model of two functions, from any library.

  >>> model = from_functions(lambda key: jnp.zeros((2, 3)), lambda w, x: x @ w, (2,), 3)
  >>> batch = {'x': jnp.ones((1, 2)), 'y': jnp.array([0])}
  >>> round(float(model.loss(model.init(jax.random.key(0)), batch)[0]), 4)  # log 3: a guess
  1.0986

  Args:
    init: key -> params, a pytree of float arrays.
    apply: (params, x) -> logits, or (params, x, key) -> logits where the key is None in evaluation.
    input_shape: shape of one example.
    num_classes: K, number of classes, or of other outputs.
    name: name in tables and messages.
    input_dtype: dtype of x.
    padding_id: for sequences, the label of padding tokens, which do not count; None: no padding.
    task: what it learns, or its name; None: that of the data.

  Raises:
    ValueError: they are not functions, or the output does not fit.
  """
  validate.function(init=init)
  validate.function(apply=apply)
  takes_key = True
  try:
    inspect.signature(apply).bind(None, None, None)
  except TypeError:
    takes_key = False

  def keyed(params: Tree, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    return apply(params, x, key) if takes_key else apply(params, x)

  how: dict[str, Any] = {'input_dtype': input_dtype, 'padding_id': padding_id, 'task': task}
  return base.build(name, init, keyed, input_shape, num_classes, **how)
