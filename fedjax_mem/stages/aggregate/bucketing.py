"""Bucketing: replaces updates by the means of random groups, before a robust rule.

The means of honest clients are closer to each other than their updates, which helps a rule when
clients' data differ.

Reference: Karimireddy et al. (2022), arXiv 2006.09365, Algorithm 1.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Message, Metrics, Rule, Tree, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.stages.aggregate import _base as kit


def bucketing(size: int) -> Layer:
  """Returns the layer that replaces the updates by the means of random groups (buckets) of them.

  A rule after it receives ceil(C / size) rows, of which f may be hostile. Its condition on C
  applies to that number. A bucket's mean is written into the row of one of its clients.

  >>> updates = [[1.0], [2.0], [3.0], [60.0]]
  >>> applied = fm.apply(updates, bucketing(2), fm.stages.aggregate.median())
  >>> int(applied.metrics['median/rows'])
  2

  Args:
    size: s, clients of a bucket (the last may have fewer), >= 1.

  Reference: Karimireddy et al. (2022), arXiv 2006.09365, Algorithm 1.

  Raises:
    ValueError: the size is not an integer >= 1.
  """
  validate.integer(size=size)

  def cohort(ctx: Context, stack: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    x, on, weights = kit.flat(ctx, stack)
    means, heads = _means(ctx, x, on, size)
    count = heads.sum(dtype=jnp.int32)
    # All buckets get the same weight, and the total weight does not change.
    each = weights.sum() / jnp.maximum(count, 1).astype(jnp.float32)
    stack = kit.put(stack, means, jnp.where(heads, each, 0), heads)
    return stack, state, {'rows': count}

  promise = Rule(rows=lambda clients: -(-clients // size))
  return Layer('bucketing', cohort=kit.side('bucketing', cohort, promise))


def _means(ctx: Context, x: jax.Array, on: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """Returns (means [C, D] of the buckets, which rows [C] hold them)."""
  ids = ctx.cohort.id

  def draw(id: jax.Array) -> jax.Array:
    return jax.random.bits(jax.random.fold_in(ctx.round_key, id), (), jnp.uint32)

  # Sorted by a draw of each client, not of each row: the order of rows depends on the devices.
  order = jnp.lexsort((ids, jax.vmap(draw)(ids), ~on))
  place = jnp.zeros(len(on), jnp.int32).at[order].set(jnp.arange(len(on), dtype=jnp.int32))
  bucket = place // size
  together = (bucket[:, None] == bucket[None]) & on[:, None] & on[None]
  heads = on & (place % size == 0)
  shares = (together & heads[:, None]).astype(jnp.float32)
  return gram.combine(shares / jnp.maximum(shares.sum(1), 1)[:, None], x), heads
