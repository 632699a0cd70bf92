"""Krum: the update of the single client that is nearest to the others.

Reference: Blanchard et al. (2017), Machine learning with adversaries, section 4.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Context, Layer, Metrics, Rule
from fedjax_mem.kernels.norms import gram
from fedjax_mem.stages.aggregate import _base as kit
from fedjax_mem.stages.aggregate._krum import lowest, scores


def krum(byzantine: int) -> Layer:
  """Returns the layer that takes the update of the client with the lowest score.

  A score is the sum of squared distances to the n - f - 2 nearest neighbours. Clients that are tied
  for the lowest score are averaged. Metric: `chosen`, the client's id, the lowest of the tied.

  >>> updates = [[0.0], [1.0], [1.5], [2.0], [60.0]]
  >>> fm.apply(updates, krum(byzantine=1)).update.tolist()
  [1.5]

  Args:
    byzantine: f, byzantine clients in a cohort, >= 0; it needs C >= 2f + 3 clients.

  Raises:
    ValueError: f is not an integer >= 0.
  """
  f = kit.check_byzantine(byzantine)

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del weights
    best = lowest(scores(gram.squared_distances(x, on), on, f), on)
    share = best.astype(jnp.float32) / jnp.maximum(best.sum(), 1).astype(jnp.float32)
    chosen = jnp.where(best, ctx.cohort.id, np.iinfo(np.int32).max).min()
    return gram.combine(share, x), {'chosen': jnp.where(on.any(), chosen, -1)}

  return kit.rule('krum', compute, Rule(2 * f + 3, f'C >= 2f + 3 with f = {f}'))
