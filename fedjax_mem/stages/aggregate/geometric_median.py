"""The geometric median: the point with the smallest sum of distances to the clients' updates.

Its breakdown point is half of the total weight. It is defined for weighted updates, and uses the
weights.

Reference: Pillutla et al. (2022), Robust aggregation for federated learning, arXiv 1912.13445,
Algorithm 2 (the smoothed Weiszfeld algorithm).
"""

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
  least = max(smoothing, float(np.finfo(np.float32).tiny))

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del ctx

    def step(_: jax.Array, coefficients: jax.Array) -> jax.Array:
      far = jnp.maximum(gram.distances_to(x, on, coefficients), jnp.float32(least))
      # Relative to the nearest update: plain inverse distances may overflow or vanish.
      nearest = jnp.where(on, far, jnp.inf).min()
      pull = jnp.where(on & (far < jnp.inf), weights * (nearest / far), 0)
      return pull / jnp.maximum(pull.sum(), 1e-30)

    coefficients = jax.lax.fori_loop(0, iterations, step, jnp.zeros_like(weights))
    return gram.combine(coefficients, x), {}

  return kit.rule('geometric_median', compute)
