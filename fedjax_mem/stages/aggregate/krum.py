"""Krum: the update of the single client that is nearest to the others.

Reference: Blanchard et al. (2017), Machine learning with adversaries, section 4.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Metrics, Rule
from fedjax_mem.kernels.norms import gram
from fedjax_mem.stages.aggregate import _base as kit
from fedjax_mem.stages.aggregate._krum import first, scores


def krum(byzantine: int) -> Layer:
  """Returns the layer that takes the update of the client with the lowest score.

  A score is the sum of squared distances to the n - f - 2 nearest neighbours. Of equal scores the
  client with the lowest id wins. Metric: `chosen`, its id.

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
    distances, _ = gram.squared_distances(x, on)
    best = first(scores(distances, on, f), on, ctx.cohort.id)
    return x[best], {'chosen': jnp.where(on.any(), ctx.cohort.id[best], -1)}

  return kit.rule('krum', compute, Rule(2 * f + 3, f'C >= 2f + 3 with f = {f}'))
