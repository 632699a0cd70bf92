"""The geometric median: the point with the least sum of distances to the clients' updates.

It breaks down only when half of the weight is hostile. It is defined for weights, and uses them.

Reference: Pillutla et al. (2022), Robust aggregation for federated learning, arXiv 1912.13445,
Algorithm 2 (the smoothed Weiszfeld algorithm).
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.stages.aggregate import _base as rule


def geometric_median(iterations: int = 8, smoothing: float = 1e-6) -> Layer:
  """Returns the layer that takes the geometric median, by smoothed Weiszfeld steps from zero.

  Zero is the server's model, where an update that is far away draws no more than a near one.

  Args:
    iterations: steps, >= 1.
    smoothing: distances count as this large at the least, > 0, in the units of an update.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(iterations=iterations)
  validate.positive(smoothing=smoothing)
  least = max(smoothing, float(jnp.finfo(jnp.float32).tiny))

  def compute(ctx, x, on, weights):
    del ctx

    def step(_, coefficients: jax.Array) -> jax.Array:
      far = jnp.maximum(gram.distances_to(x, on, coefficients), jnp.float32(least))
      # Relative to the nearest: inverse distances alone may overflow, or vanish.
      nearest = jnp.where(on, far, jnp.inf).min()
      pull = jnp.where(on & (far < jnp.inf), weights * (nearest / far), 0)
      return pull / jnp.maximum(pull.sum(), 1e-30)

    coefficients = jax.lax.fori_loop(0, iterations, step, jnp.zeros_like(weights))
    return gram.combine(coefficients, x), {}

  return rule.layer('geometric_median', compute)
