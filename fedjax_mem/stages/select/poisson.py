"""Poisson sampling: every client takes part independently of all others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Context, Draws, Layer, Member, Metrics, Tree, validate
from fedjax_mem.kernels.random import laws
from fedjax_mem.stages.select import _base as draws


def poisson(num_clients: int, rate: float, capacity: int | None = None) -> Layer:
  """Returns the layer that selects each client independently with probability `rate`.

  The cohort is drawn as a binomial count and a uniform set of that size. This is the same law, in
  O(capacity log capacity) for any population. A count beyond `capacity` is cut to it, which keeps a
  uniform subset (metric: `overflow`, 1 for a cut). After a layer that leaves clients out, the
  eligible clients are drawn with the same probability, in O(N).

  >>> poisson(1000, rate=0.1).fact(fm.Draws)
  Draws(scheme='poisson', population=1000, expected=100.0, capacity=161, min_sep=1)

  Args:
    num_clients: N, clients of the population.
    rate: inclusion probability of each client in each round, in (0, 1].
    capacity: rows of a cohort; None: the smallest number which a cohort exceeds with a probability
      of at most 1e-9.

  Raises:
    ValueError: a size is not a whole number >= 1, or the rate is not in (0, 1].
  """
  validate.integer(num_clients=num_clients)
  validate.probability(rate=rate)
  if capacity is None:
    capacity = laws.binomial_capacity(num_clients, rate)
  validate.integer(at_most=num_clients, capacity=capacity)
  from scipy import stats  # imported where it is used: it takes a while

  high, low = laws.thresholds(stats.binom(num_clients, rate).sf(np.arange(capacity + 1)))

  def draw(ctx: Context, eligible: Any, state: Tree) -> tuple[Member, Tree, Metrics]:
    if eligible is not None:
      cohort, count = _among(ctx.key, eligible, rate, capacity)
      return cohort, state, {'overflow': (count > capacity).astype(jnp.int32)}
    bits = jax.random.bits(jax.random.fold_in(ctx.key, 0), (2,), jnp.uint32)
    count = laws.reached(high, low, bits[0], bits[1]).sum(dtype=jnp.int32)
    ids = draws.ordered_sample(jax.random.fold_in(ctx.key, 1), num_clients, capacity)
    taken = jnp.minimum(count, capacity)
    cohort = draws.members(ids, jnp.arange(capacity) < taken, rate, num_clients)
    return cohort, state, {'overflow': (count > capacity).astype(jnp.int32)}

  law = Draws('poisson', num_clients, num_clients * rate, capacity)
  return Layer('select', select=draws.drawing(draw, law, among=True))


def _among(
  key: jax.Array, eligible: jax.Array, rate: float, capacity: int
) -> tuple[Member, jax.Array]:
  """Returns (a cohort drawn from the eligible [N] clients, the count before the cut). O(N)."""
  draw = jax.random.bits(jax.random.fold_in(key, 0), eligible.shape, jnp.uint32)
  taken = eligible & laws.chosen(draw, rate)
  ids = draws.highest(taken.astype(jnp.float32), jax.random.fold_in(key, 1), capacity)
  cohort = draws.members(ids, taken[ids], rate, len(eligible))
  return cohort, taken.sum(dtype=jnp.int32)
