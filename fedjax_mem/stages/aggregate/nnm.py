"""Nearest-neighbour mixing: replaces every update by the mean of its nearest ones, before a rule.

The means of honest clients are closer to each other than their updates, which helps a rule when
clients' data differ.

Reference: Allouah et al. (2023), arXiv 2302.01772, Algorithm 2.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Metrics, Rule
from fedjax_mem.kernels.norms import gram
from fedjax_mem.kernels.order import columns
from fedjax_mem.stages.aggregate import _base as kit


def nnm(byzantine: int) -> Layer:
  """Returns the layer that replaces every update by the mean of the n - f nearest to it.

  An update is its own nearest neighbour. Neighbours that are tied for the last places share them
  equally.

  >>> updates = [[1.0], [2.0], [3.0], [60.0]]
  >>> fm.apply(updates, nnm(byzantine=1), fm.stages.aggregate.median()).update.round(3).tolist()
  [2.0]

  Args:
    byzantine: f, byzantine clients in a cohort, >= 0; it needs C >= 2f + 1 clients.

  Reference: Allouah et al. (2023), arXiv 2302.01772, Algorithm 2.

  Raises:
    ValueError: f is not an integer >= 0.
  """
  f = kit.check_byzantine(byzantine)

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del ctx, weights
    distances = gram.squared_distances(x, on)
    near = jnp.maximum(on.sum(dtype=jnp.int32) - f, 1)
    shares = columns.smallest(distances, on, near).T
    return gram.combine(shares / near.astype(jnp.float32), x), {}

  return kit.rule('nnm', compute, Rule(2 * f + 1, f'C >= 2f + 1 with f = {f}'))
