"""Nearest-neighbour mixing: every update becomes the mean of those nearest to it, before a rule.

It brings honest clients nearer to each other, which a rule needs where their data differ.

Reference: Allouah et al. (2023), arXiv 2302.01772, Algorithm 2.
"""

import jax.numpy as jnp

from fedjax_mem.core import Layer, Rule
from fedjax_mem.kernels.norms import gram
from fedjax_mem.kernels.order import columns
from fedjax_mem.stages.aggregate import _base as rule


def nnm(byzantine: int) -> Layer:
  """Returns the layer that replaces every update by the mean of the n - f nearest to it.

  Neighbours that are tied for the last places share them.

  Args:
    byzantine: f, hostile clients in a cohort, >= 0; it needs C >= 2f + 1 clients.

  Reference: Allouah et al. (2023), arXiv 2302.01772, Algorithm 2.

  Raises:
    ValueError: f is not an integer >= 0.
  """
  f = rule.check_byzantine(byzantine)

  def compute(ctx, x, on, weights):
    del ctx, weights
    distances, _ = gram.squared_distances(x, on)
    near = jnp.maximum(on.sum(dtype=jnp.int32) - f, 1)
    shares = columns.smallest(distances, on, near).T
    return gram.combine(shares / near.astype(jnp.float32), x), {}

  return rule.layer('nnm', compute, Rule(2 * f + 1, f'C >= 2f + 1 with f = {f}'))
