"""The geometric median: the point with the smallest sum of distances to the clients' updates.

Its breakdown point is half of the total weight. It is defined for weighted updates, and uses the
weights.

Reference: Pillutla et al. (2022), Robust aggregation for federated learning, arXiv 1912.13445,
Algorithm 2 (the smoothed Weiszfeld algorithm).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Context, Layer, Metrics, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.stages.aggregate import _base as kit


def geometric_median(iterations: int = 8, smoothing: float = 1e-6) -> Layer:
  """Returns the layer that takes the geometric median, by smoothed Weiszfeld steps from zero.

  Zero is the server's current model. From there a distant update pulls no harder than a near one.

  >>> fm.apply([[1.0], [2.0], [60.0]], geometric_median()).update.round(2).tolist()
  [2.0]

  Args:
    iterations: steps, >= 1.
    smoothing: lower limit on distances, > 0, in the units of an update.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(iterations=iterations)
  validate.positive(smoothing=smoothing)
  smoothing = max(smoothing, float(np.finfo(np.float32).tiny))
  floor = math.frexp(smoothing)[1]

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del ctx
    units = gram.units(x)

    def step(_: jax.Array, coefficients: jax.Array) -> jax.Array:
      far, at = gram.distances_to(x, units, coefficients)
      # Not below the smoothing; 1e-30 stands for less than float32 can tell apart from 0.
      e = jnp.maximum(at, floor)
      least = jnp.maximum(jnp.ldexp(jnp.float32(smoothing), -e), 1e-30)
      far = jnp.maximum(jnp.ldexp(far, at - e), least)
      # Relative to the nearest update: plain inverse distances may overflow or vanish. And in the
      # units of the rows: however far one is, its pull is the length of the nearest one's.
      nearest = jnp.where(on, jnp.log2(far) + e.astype(jnp.float32), jnp.inf).min()
      nearest = jnp.where(on.any(), jnp.floor(nearest), 0).astype(jnp.int32)
      pull = jnp.where(on, weights * jnp.ldexp(1 / far, nearest - e), 0)
      share = weights / jnp.maximum(pull.sum(), 1e-30)
      return jnp.where(on, share * jnp.ldexp(1 / far, nearest - e + units), 0)

    coefficients = jax.lax.fori_loop(0, iterations, step, jnp.zeros_like(weights))
    return gram.combine(coefficients, x, units), {}

  return kit.rule('geometric_median', compute)
