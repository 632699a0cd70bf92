"""Rules that choose the clients nearest to others: Krum, multi-Krum and Bulyan.

A client's score is the sum of its squared distances to its n - f - 2 nearest neighbours, n of them
there. All distances come from one matrix product.

References: Blanchard et al. (2017), Machine learning with adversaries, section 4 (Krum) and 6
(multi-Krum); El Mhamdi et al. (2018), arXiv 1802.07927, section 4 (Bulyan).
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, Rule, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.kernels.order import columns
from fedjax_mem.stages.aggregate import _base as rule

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


def krum(byzantine: int) -> Layer:
  """Returns the layer that takes the update of the client with the least score.

  Of equal scores the client with the lowest id wins.

  Args:
    byzantine: f, hostile clients in a cohort, >= 0; it needs C >= 2f + 3 clients.

  Raises:
    ValueError: f is not an integer >= 0.
  """
  f = rule.check_byzantine(byzantine)

  def compute(ctx, x, on, weights):
    del weights
    distances, _ = gram.squared_distances(x, on)
    best = first(scores(distances, on, f), on, ctx.cohort.id)
    return x[best], {'chosen': jnp.where(on.any(), ctx.cohort.id[best], -1)}

  return rule.layer('krum', compute, Rule(2 * f + 3, f'C >= 2f + 3 with f = {f}'))


def multi_krum(byzantine: int, selected: int | None = None) -> Layer:
  """Returns the layer that averages the clients with the least scores.

  Clients whose scores are tied for the last places share them.

  Args:
    byzantine: f, hostile clients in a cohort, >= 0; it needs C >= 2f + 3 clients.
    selected: m, clients that are averaged (never more than there are); None: all but f.

  Raises:
    ValueError: f is not an integer >= 0, or m not one >= 1.
  """
  f = rule.check_byzantine(byzantine)
  if selected is not None:
    validate.integer(selected=selected)

  def compute(ctx, x, on, weights):
    del ctx, weights
    distances, _ = gram.squared_distances(x, on)
    count = on.sum(dtype=jnp.int32)
    taken = jnp.maximum(count - f, 1) if selected is None else jnp.minimum(selected, count)
    shares = gram.shares_of_smallest(scores(distances, on, f), on, taken)
    return gram.combine(shares / jnp.maximum(taken, 1).astype(jnp.float32), x), {}

  return rule.layer('multi_krum', compute, Rule(2 * f + 3, f'C >= 2f + 3 with f = {f}'))


def bulyan(byzantine: int) -> Layer:
  """Returns the layer that selects n - 2f clients by Krum, one after another, then averages, in
  every coordinate, the n - 4f of their values nearest to their median.

  Args:
    byzantine: f, hostile clients in a cohort, >= 0; it needs C >= 4f + 3 clients.

  Raises:
    ValueError: f is not an integer >= 0.
  """
  f = rule.check_byzantine(byzantine)

  def compute(ctx, x, on, weights):
    del weights
    distances, _ = gram.squared_distances(x, on)
    count = on.sum(dtype=jnp.int32)

    def choose(_, left: jax.Array) -> jax.Array:
      best = first(scores(distances, left, f), left, ctx.cohort.id)
      return left & (jnp.arange(len(left)) != best)

    left = jax.lax.fori_loop(0, jnp.maximum(count - 2 * f, 0), choose, on)
    return columns.mean_near(x, on & ~left, jnp.maximum(count - 4 * f, 1)), {}

  return rule.layer('bulyan', compute, Rule(4 * f + 3, f'C >= 4f + 3 with f = {f}'))
