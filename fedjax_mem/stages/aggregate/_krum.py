"""What Krum, multi-Krum and Bulyan share: Krum's scores, and the client with the lowest one.

A client's score is the sum of its squared distances to its n - f - 2 nearest neighbours, where n
clients take part. All distances come from one matrix product.

Reference: Blanchard et al. (2017), Machine learning with adversaries, section 4.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.kernels.order import columns

_ROUNDING = 1 + 1e-5  # scores whose ratio is smaller are equal up to rounding


def scores(distances: jax.Array, on: jax.Array, byzantine: int) -> jax.Array:
  """Returns Krum's scores [C]; infinite for rows that do not count.

  Args:
    distances: [C, C], squared; infinite where a row does not count.
    on: [C] booleans, the rows that count.
    byzantine: f.
  """
  apart = jnp.where(jnp.eye(len(on), dtype=bool), jnp.inf, distances)
  apart = jnp.where(on[None] & on[:, None], apart, jnp.inf)
  near = jnp.maximum(on.sum(dtype=jnp.int32) - byzantine - 2, 0)
  return jnp.where(on, columns.smallest_sum(apart, jnp.ones_like(on), near), jnp.inf)


def first(values: jax.Array, on: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns the row with the lowest value among those that are on; of equal ones, the lowest id.

  Values that differ only by rounding are equal: rounding depends on the order of the rows, which
  differs between devices.
  """
  least = jnp.where(on, values, jnp.inf)
  best = on & (least <= least.min() * _ROUNDING)
  return jnp.argmin(jnp.where(best, ids, np.iinfo(np.int32).max))
