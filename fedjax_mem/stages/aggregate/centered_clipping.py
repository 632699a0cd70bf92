"""Centered clipping: updates clipped around the aggregate of the round before.

One client can pull the aggregate by at most the radius over the number of clients.

Reference: Karimireddy et al. (2021), arXiv 2012.10333, Algorithm 2.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Message, Stage, tree, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.stages.aggregate import _base as rule


def centered_clipping(radius: float, iterations: int = 1) -> Layer:
  """Returns the layer that averages what is left of updates clipped around the last aggregate.

  v <- v + 1/n sum (x_i - v) min(1, radius / |x_i - v|), from the value of the round before (zero
  at first), which the server keeps.

  Args:
    radius: tau, in the units of an update, > 0.
    iterations: steps in a round, >= 1.

  Reference: Karimireddy et al. (2021), arXiv 2012.10333, Algorithm 2.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(radius=radius)
  validate.integer(iterations=iterations)

  def compute(ctx, x, on, weights):
    del weights
    center = jnp.concatenate(
      [c.reshape(-1).astype(jnp.float32) for c in jax.tree.leaves(ctx.server_state)]
    )
    count = jnp.maximum(on.sum(), 1).astype(jnp.float32)

    def step(_, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
      kept, coefficients = now
      far = gram.distances_to(x, on, coefficients, kept * center)
      pull = jnp.where(on, jnp.minimum(1, radius / jnp.maximum(far, 1e-30)), 0) / count
      rest = 1 - pull.sum()
      return rest * kept, rest * coefficients + pull

    begin = (jnp.float32(1), jnp.zeros(len(on), jnp.float32))
    kept, coefficients = jax.lax.fori_loop(0, iterations, step, begin)
    return kept * center + gram.combine(coefficients, x), {}

  def remember(ctx: Context, message: Message, center):
    del ctx
    took = message.weight > 0
    by = 1 / jnp.where(took, message.weight, 1)
    return message, tree.select(took, tree.scale(by, message.update), center), {}

  server = Stage(remember, lambda ctx: tree.zeros(ctx.spec.update))
  return rule.layer('centered_clipping', compute, server=server)
