"""Rules that bound how far one client can pull: centered clipping and norm bounding."""

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


def norm_bounding(l2_clip_norm: float) -> Layer:
  """Returns the layer with which the server scales every update down to a norm, and averages.

  It is the server's defence: unlike the clip of a privacy layer, it does not ask the client to do
  it. Weights stay as they are. Metric: `clipped`, the share of the clients.

  Args:
    l2_clip_norm: bound on the L2 norm of an update, > 0.

  Reference: Sun et al. (2019), arXiv 1911.07963, section 4.

  Raises:
    ValueError: the bound is not > 0.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)

  def compute(ctx, x, on, weights):
    del ctx, weights
    norms = gram.norms(x)
    factor = jnp.minimum(1, l2_clip_norm / jnp.maximum(norms, 1e-30))
    clipped = (on & (norms > l2_clip_norm)).sum().astype(jnp.float32)
    return x * factor[:, None], {'clipped': clipped / jnp.maximum(on.sum(), 1).astype(jnp.float32)}

  return rule.layer('norm_bounding', compute)
