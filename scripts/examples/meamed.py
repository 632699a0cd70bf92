"""Coordinate-wise Meamed: a robust rule of one's own.

In a configuration: `stages = [{use = "meamed:meamed", options = {byzantine = 1}}]`, with this
folder on PYTHONPATH.
"""

import jax
import jax.numpy as jnp

import fedjax_mem as fm
from fedjax_mem.core import tree, validate


def meamed(byzantine):
  """Returns the mean of the n - f values nearest to the median, coordinate by coordinate.

  Reference: Xie, Koyejo, Gupta (2018), arXiv 1802.10116, section 3.3.

  Args:
    byzantine: f, hostile clients in a cohort, >= 0; it needs C >= 2f + 1 clients.
  """
  validate.integer(at_least=0, byzantine=byzantine)

  def cohort(ctx, stack, state):
    on = ctx.cohort.arrived & (stack.weight > 0) & tree.finite(stack.update, 1)
    count = on.sum(dtype=jnp.int32)
    weight = jnp.where(on & (count > 2 * byzantine), stack.weight, 0)  # else the round is skipped

    def rule(x):
      wide = lambda v: v.reshape((-1,) + (1,) * (x.ndim - 1))
      rows = jnp.sort(jnp.where(wide(on), x / wide(jnp.where(on, stack.weight, 1)), jnp.inf), 0)
      median = (rows[(count - 1) // 2] + rows[count // 2]) / 2
      nearest = jnp.argsort(jnp.where(jnp.isfinite(rows), jnp.abs(rows - median[None]), jnp.inf), 0)
      kept = wide(jnp.arange(len(on)) < count - byzantine)
      near = jnp.where(kept, jnp.take_along_axis(rows, nearest, 0), 0)
      mean = near.sum(0) / jnp.maximum(count - byzantine, 1).astype(x.dtype)
      # The sum over the cohort, divided, is the mean again.
      return jnp.where(wide(weight > 0), wide(weight) * mean[None], 0)

    return stack._replace(update=jax.tree.map(rule, stack.update), weight=weight), state, {}

  fact = fm.Rule(2 * byzantine + 1, f'C >= 2f + 1 with f = {byzantine}')
  return fm.Layer('meamed', cohort=fm.Stage(cohort, facts=(fact,)))
