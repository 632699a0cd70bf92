"""What Krum, multi-Krum and Bulyan share: the score of a client, and the client of least score.

A client's score is the sum of its squared distances to its n - f - 2 nearest neighbours, n clients
taking part. All distances come from one matrix product.

Reference: Blanchard et al. (2017), Machine learning with adversaries, section 4.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.kernels.order import columns

_ROUNDING = 1 + 1e-5  # scores that differ by less are the same, rounded


def scores(distances: jax.Array, on: jax.Array, byzantine: int) -> jax.Array:
  """Returns Krum's scores [C]; infinite for rows that do not count.

  Args:
    distances: [C, C], squared; infinite where a row does not count.
    on: [C] booleans.
    byzantine: f.
  """
  apart = jnp.where(jnp.eye(len(on), dtype=bool), jnp.inf, distances)
  apart = jnp.where(on[None] & on[:, None], apart, jnp.inf)
  near = jnp.maximum(on.sum(dtype=jnp.int32) - byzantine - 2, 0)
  return jnp.where(on, columns.smallest_sum(apart, jnp.ones_like(on), near), jnp.inf)


def first(values: jax.Array, on: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns the row with the least value among those that are on; of equal ones, the least id.

  Values are equal up to rounding, which depends on the order of the rows.
  """
  least = jnp.where(on, values, jnp.inf)
  best = on & (least <= least.min() * _ROUNDING)
  return jnp.argmin(jnp.where(best, ids, jnp.iinfo(jnp.int32).max))
