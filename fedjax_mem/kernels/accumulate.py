"""Clipping, weighting and summing of flat updates in one go, and the noise on the sum.

Equal to `clip.clip_by_global_norm` on each update, then a weighted sum, without an array for the
clipped updates. The edge cases are those of `clip`: an update that holds an infinite or a NaN value
makes the sum NaN, unless its weight is 0: then it takes no part.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import validate
from fedjax_mem.kernels import clip

ArrayLike = jax.typing.ArrayLike


def clipped_sum(
  x: jax.Array, bound: ArrayLike, weight: jax.Array, total: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns (total + sum of weight * clipped x, float32 [D], norms before clipping).

  Args:
    x: updates [K, D], or one update [D].
    bound: L2 bound of an update, >= 0: a number or a float32 scalar.
    weight: [K], or a scalar for one update.
    total: [D] float32, what was summed before; by default zeros.

  Raises:
    ValueError: `bound` is a number that is negative or not finite, or shapes do not fit.
  """
  if isinstance(bound, int | float):
    validate.non_negative(bound=bound)
  weight = jnp.asarray(weight, jnp.float32)
  if x.ndim not in (1, 2) or weight.shape != x.shape[:-1]:
    raise ValueError(
      f'x must be [K, D] with weights [K], or [D] with a scalar, got {x.shape!r}, {weight.shape!r}.'
    )
  stack = x if x.ndim == 2 else x[None]
  weights = weight.reshape(-1, 1)
  clipped, norms = jax.vmap(lambda row: clip.clip_by_global_norm(row, bound))(stack)
  parts = jnp.where(weights == 0, jnp.float32(0), weights * clipped.astype(jnp.float32))
  added = parts.sum(0)
  return added if total is None else total + added, norms.reshape(x.shape[:-1])


def with_noise(key: jax.Array, total: jax.Array, stddev: ArrayLike) -> jax.Array:
  """Returns total [D] plus float32 Gaussian noise, see `noise.gaussian` for its tails."""
  stddev = jnp.asarray(stddev, jnp.float32)
  return total + stddev * jax.random.normal(key, total.shape, jnp.float32)
