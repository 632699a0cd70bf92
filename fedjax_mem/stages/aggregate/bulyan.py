"""Bulyan: selects clients by Krum, then takes a trimmed mean around the median of each coordinate.

Reference: El Mhamdi et al. (2018), arXiv 1802.07927, section 4.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Metrics, Rule
from fedjax_mem.kernels.norms import gram
from fedjax_mem.kernels.order import columns
from fedjax_mem.stages.aggregate import _base as kit
from fedjax_mem.stages.aggregate._krum import first, scores


def bulyan(byzantine: int) -> Layer:
  """Returns the layer that selects clients by Krum, then averages near the median.

  It selects n - 2f clients, one after another. In every coordinate it averages the n - 4f of their
  values that are nearest to their median.

  >>> updates = [[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [60.0]]
  >>> fm.apply(updates, bulyan(byzantine=1)).update.round(3).tolist()
  [3.0]

  Args:
    byzantine: f, byzantine clients in a cohort, >= 0; it needs C >= 4f + 3 clients.

  Raises:
    ValueError: f is not an integer >= 0.
  """
  f = kit.check_byzantine(byzantine)

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del weights
    distances, _ = gram.squared_distances(x, on)
    count = on.sum(dtype=jnp.int32)

    def choose(_: jax.Array, left: jax.Array) -> jax.Array:
      # Scores are computed anew among the clients that are left.
      best = first(scores(distances, left, f), left, ctx.cohort.id)
      return left & (jnp.arange(len(left)) != best)

    left = jax.lax.fori_loop(0, jnp.maximum(count - 2 * f, 0), choose, on)
    return columns.mean_near(x, on & ~left, jnp.maximum(count - 4 * f, 1)), {}

  return kit.rule('bulyan', compute, Rule(4 * f + 3, f'C >= 4f + 3 with f = {f}'))
