"""Clipping, weighting and summing of flat updates in one go, and the noise on the sum.

Equal to `clip.clip_by_global_norm` on each update, then a weighted sum, without an array for the
clipped updates. The edge cases are those of `clip`: an update that holds an infinite or a NaN value
makes the sum NaN, unless its weight is 0: then it takes no part.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import validate
from fedjax_mem.kernels.loops import parts
from fedjax_mem.kernels.norms import clip

ArrayLike = jax.typing.ArrayLike
Normed = tuple[jax.Array, jax.Array, jax.Array]


# Sums of squares between these have lost nothing to overflow or underflow.
SAFE = (1e-20, 1e36)
# Updates that are added in one pass over the total.
AT_ONCE = 4


def _norm(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (s, norm of s * x) of x [D], s a power of two: 1 unless the squares need another."""
  x = x.astype(jnp.float32)
  squares = jnp.sum(jnp.square(x))
  safe = (squares > SAFE[0]) & (squares < SAFE[1])

  def again(state: Normed) -> Normed:
    # The 1 it is multiplied by is carried: what does not vary would be moved out of the loop.
    scale, norm = clip.scaled_norm(x * state[1])
    return jnp.bool_(True), scale, norm

  # A loop, not a branch: under `vmap` both sides of a branch are computed.
  start = (safe, jnp.float32(1), jnp.sqrt(squares))
  return jax.lax.while_loop(lambda state: ~state[0], again, start)[1:]


def clipped_sum(
  x: jax.Array, bound: ArrayLike, weight: ArrayLike, total: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns (total + sum of weight * clipped x, float32 [D]; norms before clipping).

  One pass over x for the norms and one for the sum; no clipped copy is made.

  Args:
    x: updates [K, D], or one update [D], floats.
    bound: L2 bound of an update, >= 0: a number or a float32 scalar.
    weight: [K], or a scalar for one update; where it is 0, the update takes no part, even if NaN.
    total: [D] float32, what was summed before; by default zeros.

  Raises:
    ValueError: `bound` is a number that is negative or not finite, or shapes do not fit.
  """
  if isinstance(bound, int | float):
    validate.non_negative(bound=bound)
  bound = jnp.asarray(bound, jnp.float32)
  weight = jnp.asarray(weight, jnp.float32)
  if x.ndim not in (1, 2) or weight.shape != x.shape[:-1]:
    raise ValueError(
      f'x must be [K, D] with weights [K], or [D] with a scalar, got {x.shape!r}, {weight.shape!r}.'
    )
  total = jnp.zeros(x.shape[-1], jnp.float32) if total is None else total
  total, norms = _add(x.reshape(-1, x.shape[-1]), bound, weight.reshape(-1), total)
  return total, norms.reshape(x.shape[:-1])


@jax.jit
def _add(
  stack: jax.Array, bound: jax.Array, weights: jax.Array, total: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns (total plus the clipped and weighted rows of stack [K, D], their norms [K])."""
  scale, scaled = jax.vmap(_norm)(stack)
  norms = scaled / scale
  inside = norms <= bound
  first = jnp.where(inside, jnp.float32(1), scale)
  factor = jnp.where(jnp.isfinite(scaled), bound / scaled, jnp.float32(jnp.nan))
  second = weights * jnp.where(inside, jnp.float32(1), factor)

  def add(i: jax.Array | int, total: jax.Array) -> jax.Array:
    part = (stack[i].astype(jnp.float32) * first[i]) * second[i]
    return total + jnp.where(weights[i] == 0, jnp.float32(0), part)

  # Row by row: XLA's sum over a short leading axis is a hundred times slower on a CPU.
  return jax.lax.fori_loop(0, len(stack), add, total, unroll=AT_ONCE), norms


@jax.jit
def with_noise(key: jax.Array, total: jax.Array, stddev: ArrayLike) -> jax.Array:
  """Returns total [D] plus float32 Gaussian noise, see `noise.gaussian` for its tails.

  Args:
    key: of this use alone.
    total: [D] float32.
    stddev: standard deviation, >= 0: a number or a float32 scalar.
  """
  stddev = jnp.asarray(stddev, jnp.float32)

  def noisy(start: jax.Array, length: int) -> jax.Array:
    drawn = jax.random.normal(jax.random.fold_in(key, start), (length,), jnp.float32)
    return parts.take(total, start, length) + stddev * drawn

  return parts.stream(noisy, total.size)
