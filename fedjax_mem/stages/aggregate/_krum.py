"""What Krum, multi-Krum and Bulyan share: Krum's scores, and the clients with the lowest one.

A client's score is the sum of its squared distances to its n - f - 2 nearest neighbours, at least
one, where n clients take part. All distances come from one matrix product.

Reference: Blanchard et al. (2017), Machine learning with adversaries, section 4.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.kernels.order import columns


def scores(distances: jax.Array, on: jax.Array, byzantine: int) -> jax.Array:
  """Returns Krum's scores [C]; infinite for rows that do not count.

  Args:
    distances: [C, C], squared; infinite where a row does not count.
    on: [C] booleans, the rows that count.
    byzantine: f.
  """
  apart = jnp.where(jnp.eye(len(on), dtype=bool), jnp.inf, distances)
  apart = jnp.where(on[None] & on[:, None], apart, jnp.inf)
  count = on.sum(dtype=jnp.int32)
  # Bulyan takes clients away until n - f - 2 is 0 or less: without a neighbour all would be equal.
  near = jnp.minimum(jnp.maximum(count - byzantine - 2, 1), jnp.maximum(count - 1, 0))
  return jnp.where(on, columns.smallest_sum(apart, jnp.ones_like(on), near), jnp.inf)


def lowest(values: jax.Array, on: jax.Array) -> jax.Array:
  """Returns the rows [C] with the lowest value among those that are on: one, or all that are tied.

  Values that differ only by rounding are tied: rounding depends on the order of the rows, which
  differs between devices.
  """
  least = jnp.where(on, values, jnp.inf)
  return on & (least <= least.min() * (1 + columns.ROUNDING))
