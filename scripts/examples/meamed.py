"""Coordinate-wise Meamed: a robust rule of one's own.

In a configuration: `stages = [{use = "meamed:meamed", options = {byzantine = 1}}]`, with this
folder on PYTHONPATH.
"""

import jax.numpy as jnp

import fedjax_mem as fm
from fedjax_mem.core import validate
from fedjax_mem.stages import aggregate


def meamed(byzantine):
  """Returns the mean of the n - f values nearest to the median, coordinate by coordinate.

  Reference: Xie, Koyejo, Gupta (2018), arXiv 1802.10116, section 3.3.

  Args:
    byzantine: f, hostile clients in a cohort, >= 0; it needs C >= 2f + 1 clients.
  """
  validate.integer(at_least=0, byzantine=byzantine)

  def compute(ctx, x, on, weights):
    del ctx, weights
    count = on.sum(dtype=jnp.int32)
    rows = jnp.sort(jnp.where(on[:, None], x, jnp.inf), 0)
    median = (rows[(count - 1) // 2] + rows[count // 2]) / 2
    nearest = jnp.argsort(jnp.where(jnp.isfinite(rows), jnp.abs(rows - median[None]), jnp.inf), 0)
    kept = jnp.arange(len(on))[:, None] < count - byzantine
    near = jnp.where(kept, jnp.take_along_axis(rows, nearest, 0), 0)
    return near.sum(0) / jnp.maximum(count - byzantine, 1).astype(x.dtype), {}

  fact = fm.Rule(2 * byzantine + 1, f'C >= 2f + 1 with f = {byzantine}')
  return aggregate.rule('meamed', compute, fact)
