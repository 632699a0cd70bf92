"""`Model`: four pure functions, which are made from an `(init, apply)` pair."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import Batch, Tree, keys, validate
from fedjax_mem.kernels.nn import rewrite


class Model(NamedTuple):
  """A model as four pure functions; B examples, K classes, T tokens in a sequence.

  Attributes:
    init: key -> params.
    apply: (params, x [B, ...], key=None) -> logits [B, K], or [B, T, K] for sequences. A key means
      training (dropout is drawn from it), None means evaluation.
    loss: (params, batch, key=None) -> [B] float32, the cross-entropy in nats of each example; for a
      sequence, the mean over its tokens that are not padding (0 if there is none).
    metrics: (params, batch) -> dict of [B] float32: 'loss' as above, and 'accuracy', 1 where the
      largest logit is the label's (for a sequence, the mean over the same tokens).
    input_shape: shape of one example.
    num_classes: K, number of classes.
    name: name in tables and messages.
  """

  init: Callable[[jax.Array], Tree]
  apply: Callable[..., jax.Array]
  loss: Callable[..., jax.Array]
  metrics: Callable[[Tree, Batch], dict[str, jax.Array]]
  input_shape: tuple[int, ...]
  num_classes: int
  name: str

  def copy(self) -> 'Model':
    """Returns the model itself: it has no state that could change."""
    return self


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns -log softmax(logits)[label] in nats, [...] float32, for logits [..., K]."""
  logits = logits.astype(jnp.float32)
  # A sum over a one-hot mask: the gradient of a gather is a scatter, which is slow in small loops.
  hot = labels[..., None] == jax.lax.broadcasted_iota(labels.dtype, logits.shape, labels.ndim)
  picked = jnp.sum(jnp.where(hot, logits, jnp.float32(0)), axis=-1)
  return jax.nn.logsumexp(logits, axis=-1) - picked


def _per_example(values: jax.Array, labels: jax.Array, padding_id: int | None) -> jax.Array:
  """Returns the mean of values [B, T] over the tokens that count, [B]; values [B] as they are."""
  if values.ndim == 1:
    return values
  real = jnp.ones(labels.shape, jnp.float32)
  if padding_id is not None:
    real = (labels != padding_id).astype(jnp.float32)
  return jnp.sum(values * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)


def build(
  name: str,
  init: Callable[[jax.Array], Tree],
  apply: Callable[..., jax.Array],
  input_shape: tuple[int, ...],
  num_classes: int,
  *,
  input_dtype: Any = jnp.float32,
  padding_id: int | None = None,
) -> Model:
  """Returns the model of an `(init, apply)` pair, with softmax cross-entropy for its loss.

  Args:
    name: name in tables and messages.
    init: key -> params, a pytree of float arrays.
    apply: (params, x, key=None) -> logits.
    input_shape: shape of one example, without the batch axis.
    num_classes: K, number of classes, at least 2.
    input_dtype: dtype of x: float32, or int32 for tokens.
    padding_id: for sequences, the label of padding tokens, which do not count; None: no padding.

  Raises:
    ValueError: a shape is not of positive integers, `init` or `apply` fails on it, or the logits
      are not [B, K] or [B, T, K]. The check traces shapes and computes nothing.
  """
  input_shape = tuple(validate.integer(input_shape=n) for n in input_shape)
  validate.integer(at_least=2, num_classes=num_classes)
  batch = 3  # an unlikely dimension, so that a model that mixes up its axes is caught
  x = jax.ShapeDtypeStruct((batch, *input_shape), input_dtype)
  try:
    params = jax.eval_shape(init, keys.seed_key(0))
    logits = jax.eval_shape(lambda p, x: apply(p, x, None), params, x)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'input_shape must be one that the model {name!r} can take, got {input_shape!r}: {error}'
    ) from error
  shape = getattr(logits, 'shape', None)
  if shape not in ((batch, num_classes), (batch, input_shape[0], num_classes)):
    raise ValueError(
      f'the output of the model {name!r} must be [B, {num_classes}] to fit the labels '
      f'(num_classes={num_classes}), got {shape!r} for an input of shape {x.shape!r}.'
    )

  def loss(params: Tree, batch: Batch, key: jax.Array | None = None) -> jax.Array:
    values = cross_entropy(apply(params, batch['x'], key), batch['y'])
    return _per_example(values, batch['y'], padding_id)

  def metrics(params: Tree, batch: Batch) -> dict[str, jax.Array]:
    logits, labels = apply(params, batch['x'], None), batch['y']
    right = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
    return {
      'loss': _per_example(cross_entropy(logits, labels), labels, padding_id),
      'accuracy': _per_example(right, labels, padding_id),
    }

  # Each is rewritten as a whole: it is then traced once, and its `__wrapped__` is as it was given.
  fast = rewrite.fast_convolutions
  init = _drawn_once(init)
  return Model(init, fast(apply), fast(loss), fast(metrics), input_shape, num_classes, name)


def as_it_is(model: Model) -> Model:
  """Returns a model whose convolutions are as it was given, slow on a CPU.

  `build` rewrites them there (`fast_convolutions`), for reverse mode only.

  >>> plain = as_it_is(fm.models.build('logistic', (2,), 3))
  >>> params = plain.init(jax.random.key(0))
  >>> jax.jvp(lambda x: plain.apply(params, x), [jnp.ones((1, 2))], [jnp.ones((1, 2))])[1].shape
  (1, 3)
  """
  return model._replace(
    apply=rewrite.as_it_is(model.apply),
    loss=rewrite.as_it_is(model.loss),
    metrics=rewrite.as_it_is(model.metrics),
  )


def _drawn_once(init: Callable[[jax.Array], Tree]) -> Callable[[jax.Array], Tree]:
  """Returns `init` as one compiled program, unless it is traced into another."""
  # It runs once, and compiles a loop over random bits for each parameter: what the full effort of
  # the compiler saves of its run is a hundredth of what it takes.
  hasty = {'xla_backend_optimization_level': 1} if jax.default_backend() == 'cpu' else None
  compiled = keys.jit(init, compiler_options=hasty)
  return lambda key: (init if isinstance(key, jax.core.Tracer) else compiled)(key)
