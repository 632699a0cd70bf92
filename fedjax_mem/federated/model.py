"""A model with its parameters, made from the user's model in any of several forms."""

import collections
import functools
import hashlib
import inspect
import struct
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedjax_mem.core import Tree, keys, tree
from fedjax_mem.models import adapters
from fedjax_mem.models.base import Model

# Seed of the parameters of a model without any: the server and all clients start from the same.
SEED = 0


class FederatedModel:
  """A model and its parameters; calling it gives logits [B, K].

  >>> model = as_model(fm.models.build('logistic', (4,), 3))
  >>> model([[0.0, 1.0, 2.0, 3.0]]).shape
  (1, 3)

  Attributes:
    model: the model's functions.
    params: the parameters, a pytree of arrays; never changed in place.
  """

  def __init__(self, model: Model, params: Tree):
    self.model = model
    self.params = params

  def __call__(self, x: Any) -> jax.Array:
    """Returns the logits [B, K] of inputs [B, ...]."""
    return self.model.apply(self.params, jnp.asarray(x), None)

  def copy(self) -> 'FederatedModel':
    """Returns the same model with arrays of its own."""
    return FederatedModel(self.model, tree.copy(self.params))

  def evaluate(self, x: Any, y: Any) -> dict[str, float]:
    """Returns the mean 'loss' (nats) and 'accuracy' on inputs [B, ...] and labels [B]."""
    batch = {'x': jnp.asarray(x), 'y': jnp.asarray(y, jnp.int32)}
    values = _metrics(self.model)(self.params, batch)
    return {name: float(value.mean()) for name, value in values.items()}

  @functools.cached_property
  def digest(self) -> bytes:
    """SHA-256 of the parameters: their names, shapes, dtypes and values."""
    return digest(self.params)


@functools.lru_cache(maxsize=64)
def _metrics(model: Model) -> Callable[..., dict[str, jax.Array]]:
  return jax.jit(model.metrics)


def digest(params: Tree) -> bytes:
  """Returns the SHA-256 of a tree of arrays: names, shapes, dtypes and values, 32 bytes."""
  state = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    x = np.ascontiguousarray(leaf)
    head = f'{jax.tree_util.keystr(path)}|{x.dtype}|{x.shape}'.encode()
    state.update(struct.pack('<Q', len(head)) + head + x.tobytes())
  return state.digest()


def floats(**named: Tree) -> Tree:
  """Returns a pytree of finite floats as arrays, or raises `ValueError`."""
  ((name, values),) = named.items()
  values = jax.tree.map(jnp.asarray, values)
  if not jax.tree.leaves(values) or tree.not_floats(values):
    kinds = sorted({x.dtype.name for x in jax.tree.leaves(values)})
    raise ValueError(f'{name} must be a pytree of arrays of floats, at least one, got {kinds!r}.')
  if not bool(tree.finite(values)):
    raise ValueError(f'{name} must be finite, got NaN or infinity in them.')
  return values


def as_model(
  model: Any, input_shape: tuple[int, ...] | None = None, dtype: Any = jnp.float32
) -> FederatedModel:
  """Returns a user's model with its parameters.

  >>> model = as_model(nn.Dense(3), input_shape=(2,))
  >>> jax.tree.map(jnp.shape, model.params)
  {'bias': (3,), 'kernel': (2, 3)}

  Args:
    model: a `FederatedModel`; one of `fedjax_mem.models`; a pair `(init, apply)` of functions, or
      `(linen module, its parameters)`; a `flax.nnx` module; a `flax.linen` module, bound to its
      parameters or not. A model without parameters gets them from a fixed seed.
    input_shape: shape of one example; needed for all forms but the first two.
    dtype: dtype of the inputs.

  Raises:
    ValueError: the model has none of these forms, does not take such inputs, or the shape is
      missing.
  """
  if isinstance(model, FederatedModel):
    found = model
  elif isinstance(model, Model):
    found = FederatedModel(model, _initial(model))
  elif input_shape is None:
    raise ValueError(f'input_shape must be given for {_named(model)}, got None.')
  else:
    found = _from_user(model, tuple(input_shape), np.dtype(dtype).name)
  if input_shape is not None and tuple(input_shape) != tuple(found.model.input_shape):
    raise ValueError(
      f'the examples must be of the shape {found.model.input_shape!r} that the model '
      f'{found.model.name!r} takes, got {tuple(input_shape)!r}.'
    )
  return found


@functools.lru_cache(maxsize=64)
def _label_shape(model: Model, dtype: str) -> tuple[int, ...]:
  """Returns the shape of one example's label: () or, for sequences, (T,)."""
  x = jax.ShapeDtypeStruct((1, *model.input_shape), dtype)
  params = jax.eval_shape(model.init, keys.like())
  logits = jax.eval_shape(lambda p, x: model.apply(p, x, None), params, x)
  shape: tuple[int, ...] = logits.shape[1:-1]
  return shape


def check_labels(model: FederatedModel, y: np.ndarray, dtype: Any) -> None:
  """Raises `ValueError` unless the labels [n, ...] fit the model's logits in shape and range.

  Args:
    model: the model.
    y: integer labels.
    dtype: dtype of the inputs.
  """
  wanted, num_classes = _label_shape(model.model, np.dtype(dtype).name), model.model.num_classes
  if y.shape[1:] != wanted:
    raise ValueError(
      f'labels must be class numbers of shape [n{"".join(f", {n}" for n in wanted)}], got shape '
      f'{y.shape!r}.'
    )
  if int(y.max()) >= num_classes:
    raise ValueError(
      f'labels must be in [0, {num_classes}), the classes of the model, got {int(y.max())}.'
    )


def needs_shape(model: Any) -> bool:
  """Returns whether `as_model` needs the shape of the examples for this model.

  Raises:
    ValueError: the model has none of the forms that `as_model` takes.
  """
  if isinstance(model, FederatedModel | Model):
    return False
  _check(model)
  return True


def _check(model: Any) -> None:
  """Raises `ValueError` unless the model is a module or a pair that `as_model` takes."""
  pair = isinstance(model, tuple) and len(model) == 2 and callable(model[1])
  with_params = isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], nn.Module)
  if isinstance(model, nn.Module | nnx.Module) or with_params or (pair and callable(model[0])):
    return
  raise ValueError(
    'model must be a FederatedModel, a fedjax_mem.models.Model, a flax module or a pair (init, '
    f'apply) of functions, got {_named(model)}.'
  )


def _named(model: Any) -> str:
  return f'an object of {type(model).__name__}'


def _from_user(model: Any, shape: tuple[int, ...], dtype: str) -> FederatedModel:
  _check(model)
  if isinstance(model, nnx.Module):
    made = _nnx(model, shape, dtype)
    return FederatedModel(made, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  if isinstance(model, nn.Module):
    if model.scope is None:
      made = _linen(model, shape, dtype)
      return FederatedModel(made, _initial(made))
    bare, variables = model.unbind()
    return FederatedModel(_linen(bare, shape, dtype), variables['params'])
  first, second = model
  if isinstance(first, nn.Module):
    bare = first if first.scope is None else first.unbind()[0]
    params = second.get('params', second)
    return FederatedModel(_linen(bare, shape, dtype), params)
  made = _functions(first, second, shape, dtype)
  return FederatedModel(made, _initial(made))


@functools.lru_cache(maxsize=64)
def _initial(model: Model) -> Tree:
  key = keys.role_key(keys.layer_key(keys.seed_key(SEED), 0, 'model'), 'init')
  return model.init(key)


def _classes(logits: Any) -> int:
  shape = getattr(logits, 'shape', ())
  if not shape:
    raise ValueError(f'the model must return logits [B, K], got shape {shape!r}.')
  return int(shape[-1])


# A cache: copies of a module share one set of functions, hence one compiled program. It is searched
# by equality, since a module with a list among its fields, such as `nn.Sequential`, has no hash.
_KNOWN: collections.deque[tuple[nn.Module, tuple[int, ...], str, Model]] = collections.deque(
  maxlen=64
)


def _linen(module: nn.Module, shape: tuple[int, ...], dtype: str) -> Model:
  module = module.copy()  # `copy` turns lists into tuples
  for known, *inputs, made in tuple(_KNOWN):
    if inputs == [shape, dtype] and type(known) is type(module) and _equal(known, module):
      return made
  made = _from_linen(module, shape, dtype)
  _KNOWN.append((module, shape, dtype, made))
  return made


def _equal(a: nn.Module, b: nn.Module) -> bool:
  try:
    return bool(a == b)
  except ValueError:  # arrays among their fields
    return False


def _from_linen(module: nn.Module, shape: tuple[int, ...], dtype: str) -> Model:
  x = jax.ShapeDtypeStruct((1, *shape), dtype)
  switch = adapters.switch(type(module).__call__)
  settings: dict[str, Any] = {} if switch is None else {switch[0]: not switch[1]}
  init = functools.partial(module.init_with_output, **settings)
  logits = jax.eval_shape(init, keys.like(), x)[0]
  return adapters.from_linen(module, shape, _classes(logits), input_dtype=jnp.dtype(dtype))


@functools.lru_cache(maxsize=64)
def _functions(
  init: Callable[..., Any], apply: Callable[..., Any], shape: tuple[int, ...], dtype: str
) -> Model:
  x = jax.ShapeDtypeStruct((1, *shape), dtype)
  params = jax.eval_shape(init, keys.like())
  more = [None] * (len(inspect.signature(apply).parameters) > 2)
  logits = jax.eval_shape(lambda p, x: apply(p, x, *more), params, x)
  kind = jnp.dtype(dtype)
  return adapters.from_functions(init, apply, shape, _classes(logits), input_dtype=kind)


# Cached by identity: only copies made by `FederatedModel.copy` share an nnx module's functions.
@functools.lru_cache(maxsize=64)
def _nnx(module: nnx.Module, shape: tuple[int, ...], dtype: str) -> Model:
  graph, state = nnx.split(module)
  x = jax.ShapeDtypeStruct((1, *shape), dtype)

  def rebuilt(rngs: nnx.Rngs) -> nnx.Module:
    made = nnx.merge(graph, state, copy=True)
    nnx.reseed(made, default=rngs.default(), dropout=rngs.default())
    return made

  logits = nnx.eval_shape(lambda x: rebuilt(nnx.Rngs(0))(x), x)
  name, kind = type(module).__name__, jnp.dtype(dtype)
  return adapters.from_nnx(rebuilt, shape, _classes(logits), name=name, input_dtype=kind)
