"""Bucketing: updates become the means of random groups, before a rule.

It brings honest clients nearer to each other, which a rule needs where their data differ.

Reference: Karimireddy et al. (2022), arXiv 2006.09365, Algorithm 1.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Message, Rule, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.stages.aggregate import _base as rule


def bucketing(size: int) -> Layer:
  """Returns the layer that replaces the updates by the means of random groups of them.

  A rule after it sees ceil(C / size) rows, of which f may be hostile: its condition on C is one on
  those. A bucket's mean stands in the row of one of its clients.

  Args:
    size: s, clients of a bucket (the last may have fewer), >= 1.

  Reference: Karimireddy et al. (2022), arXiv 2006.09365, Algorithm 1.

  Raises:
    ValueError: the size is not an integer >= 1.
  """
  validate.integer(size=size)

  def cohort(ctx: Context, stack: Message, state):
    x, on, weights = rule.flat(ctx, stack)
    means, heads = _means(ctx, x, on, size)
    count = heads.sum(dtype=jnp.int32)
    # Buckets count the same, and all together as much as before.
    each = weights.sum() / jnp.maximum(count, 1).astype(jnp.float32)
    stack = rule.put(stack, means, jnp.where(heads, each, 0), heads)
    return stack, state, {'rows': count}

  promise = Rule(rows=lambda clients: -(-clients // size))
  return Layer('bucketing', cohort=rule.side('bucketing', cohort, promise))


def _means(ctx: Context, x: jax.Array, on: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """Returns (means [C, D] of the buckets, in which rows [C] they stand)."""
  ids = ctx.cohort.id
  draw = lambda id: jax.random.bits(jax.random.fold_in(ctx.round_key, id), (), jnp.uint32)
  # By a client's own draw, not by its row: rows are in another order on other devices.
  order = jnp.lexsort((ids, jax.vmap(draw)(ids), ~on))
  place = jnp.zeros(len(on), jnp.int32).at[order].set(jnp.arange(len(on), dtype=jnp.int32))
  bucket = place // size
  together = (bucket[:, None] == bucket[None]) & on[:, None] & on[None]
  heads = on & (place % size == 0)
  shares = (together & heads[:, None]).astype(jnp.float32)
  return gram.combine(shares / jnp.maximum(shares.sum(1), 1)[:, None], x), heads
