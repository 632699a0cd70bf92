"""Centered clipping: clips updates around the aggregate of the previous round.

A single client can move the aggregate by at most the radius divided by the number of clients.

Reference: Karimireddy et al. (2021), arXiv 2012.10333, Algorithm 2.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Message, Metrics, Stage, Tree, tree, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.stages.aggregate import _base as kit


def centered_clipping(radius: float, iterations: int = 1) -> Layer:
  """Returns the layer that averages the updates after clipping them around the last aggregate.

  v <- v + 1/n sum (x_i - v) min(1, radius / |x_i - v|). It starts from the result of the previous
  round (zero at first), which the server keeps as its state.

  >>> fm.apply([[1.0], [2.0], [60.0]], centered_clipping(radius=3.0)).update.round(3).tolist()
  [2.0]

  Args:
    radius: tau, in the units of an update, > 0.
    iterations: steps in a round, >= 1.

  Reference: Karimireddy et al. (2021), arXiv 2012.10333, Algorithm 2.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(radius=radius)
  validate.integer(iterations=iterations)

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del weights
    units = gram.units(x)
    center = jnp.concatenate(
      [c.reshape(-1).astype(jnp.float32) for c in jax.tree.leaves(ctx.server_state)]
    )
    count = jnp.maximum(on.sum(), 1).astype(jnp.float32)

    # v = kept * center + coefficients @ (x in its units): the loop carries C + 1 numbers instead of
    # D. In units, since what is left of a row of 1e36 is 1e-36 of it, and still the radius.
    def step(_: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
      kept, coefficients = now
      far, at = gram.distances_to(x, units, coefficients, kept * center)
      share = radius / jnp.maximum(far, 1e-30)
      pull = jnp.where(on, jnp.minimum(1, jnp.ldexp(share, -at)), 0) / count
      moved = jnp.minimum(jnp.ldexp(jnp.float32(1), units), jnp.ldexp(share, units - at))
      rest = 1 - pull.sum()
      return rest * kept, rest * coefficients + jnp.where(on, moved, 0) / count

    begin = (jnp.float32(1), jnp.zeros(len(on), jnp.float32))
    kept, coefficients = jax.lax.fori_loop(0, iterations, step, begin)
    return kept * center + gram.combine(coefficients, x, units), {}

  def remember(ctx: Context, message: Message, center: Tree) -> tuple[Message, Tree, Metrics]:
    del ctx
    # A skipped round has weight 0 and leaves the center as it is.
    took = message.weight > 0
    by = 1 / jnp.where(took, message.weight, 1)
    return message, tree.select(took, tree.scale(by, message.update), center), {}

  server = Stage(remember, lambda ctx: tree.zeros(ctx.spec.update))
  return kit.rule('centered_clipping', compute, server=server)
