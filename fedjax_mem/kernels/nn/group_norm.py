"""Group normalisation of [H, W, B, C], with a backward pass of its own.

Statistics belong to an example and a group of channels, so that they are sums over H and W, which
are vectors [B, C], and then over the few channels of a group. With them each pass over the input is
one multiplication and one addition per value, forward and backward. Derived by JAX, the backward
pass goes over the input several times more.

Worked example: one example of two values in one group. Their mean is 2, their variance 1.

>>> x = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)
>>> group_norm(x, jnp.ones(1), jnp.zeros(1), 1, 1e-12).ravel().tolist()
[-1.0, 1.0]

Reference: Wu & He (2018), arXiv 1803.08494, equations 1 to 6.
"""

import functools

import jax
import jax.numpy as jnp

from fedjax_mem.core.tracing import once
from fedjax_mem.kernels.nn import wide

# (x, mean [B, C], 1 / standard deviation [B, C], scale [C])
_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _wide(values: jax.Array) -> jax.Array:
  """Returns values [B, C], or [C], with the axes of [H, W, B, C]."""
  return values.reshape((1,) * (4 - values.ndim) + values.shape)


def _over_groups(values: jax.Array, groups: int) -> jax.Array:
  """Returns the mean over the channels of each group, for each of them: [B, C] from [B, C]."""
  batch, channels = values.shape
  each = values.reshape(batch, groups, channels // groups).mean(2, keepdims=True)
  return jnp.broadcast_to(each, (batch, groups, channels // groups)).reshape(batch, channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def group_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float
) -> jax.Array:
  """Returns x normalised for each example and group, then scaled and shifted for each channel.

  Differentiable in reverse mode only. Floats of 16 bits are computed in float32, as sums over H and
  W need; the output and the gradients have the dtypes of the arguments.

  Args:
    x: [H, W, B, C].
    scale: [C].
    bias: [C].
    groups: number of groups of neighbouring channels; divides C.
    epsilon: constant added to the variance, > 0.
  """
  return _forward(x, scale, bias, groups, epsilon)[0]


@once(3, 4)
def _forward(
  x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float
) -> tuple[jax.Array, _Residuals]:
  """Returns (the output, what `_backward` needs)."""
  # Two passes: the mean of squares less the square of the mean would cancel.
  kept = x, scale
  x, scale, bias = map(wide.at_least_float32, (x, scale, bias))
  mean = _over_groups(x.mean((0, 1)), groups)
  centred = x - _wide(mean)
  variance = _over_groups(jnp.square(centred).mean((0, 1)), groups)
  inverse = jax.lax.rsqrt(variance + epsilon)
  y = centred * _wide(inverse * scale[None]) + _wide(bias)
  return y.astype(kept[0].dtype), (kept[0], mean, inverse, kept[1])


@once(0, 1)
def _backward(
  groups: int, epsilon: float, residuals: _Residuals, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the gradients of x, scale and bias.

  With y = (x - mean) inverse, and means over a group of an example, the gradient of x is
  inverse (g scale - mean(g scale) - y mean(g scale y)).
  """
  del epsilon
  kinds = residuals[0].dtype, residuals[3].dtype
  mean, inverse = residuals[1:3]
  x, scale, g = map(wide.at_least_float32, (residuals[0], residuals[3], g))
  places = x.shape[0] * x.shape[1]
  plain = g.sum((0, 1))
  centred = x - _wide(mean)
  along = (g * centred).sum((0, 1)) * inverse
  first = _over_groups(plain * scale[None], groups) / places
  second = _over_groups(along * scale[None], groups) / places
  # In this order the factors [B, C] are found before the pass over the values.
  dx = g * _wide(inverse * scale[None]) - centred * _wide(inverse * inverse * second)
  dx -= _wide(inverse * first)
  return dx.astype(kinds[0]), along.sum(0).astype(kinds[1]), plain.sum(0).astype(kinds[1])


group_norm.defvjp(_forward, _backward)
