"""A uniform cohort of fixed size, drawn without replacement."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Draws, Layer, Member, Metrics, Tree
from fedjax_mem.stages.select import _base as draws


def uniform(num_clients: int, cohort_size: int) -> Layer:
  """Returns the layer that selects `cohort_size` distinct clients, every set equally likely.

  After a layer that leaves clients out, it draws among the eligible clients, or takes all of them
  if there are fewer.

  >>> uniform(100, 10).fact(fm.Draws)
  Draws(scheme='without_replacement', population=100, expected=10, capacity=10, min_sep=1)

  Reference: McMahan et al. (2017), arXiv 1602.05629, Algorithm 1. O(cohort_size log cohort_size).

  Args:
    num_clients: N, clients of the population.
    cohort_size: C, clients a round, 1 <= C <= N.

  Raises:
    ValueError: a size is not a whole number >= 1, or the cohort is larger than the population.
  """
  draws.check_cohort(num_clients, cohort_size)
  chance = cohort_size / num_clients

  def draw(ctx: Context, eligible: Any, state: Tree) -> tuple[Member, Tree, Metrics]:
    if eligible is not None:
      return _among(ctx.key, eligible, cohort_size), state, {}
    ids = draws.ordered_sample(ctx.key, num_clients, cohort_size)
    return draws.members(ids, jnp.ones(cohort_size, bool), chance, num_clients), state, {}

  law = Draws('without_replacement', num_clients, cohort_size, cohort_size)
  return Layer('select', select=draws.drawing(draw, law, among=True))


def _among(key: jax.Array, eligible: jax.Array, size: int) -> Member:
  """Returns a cohort of up to `size` of the eligible [N] clients, every set equally likely."""
  ids = draws.highest(eligible.astype(jnp.float32), key, size)
  there = jnp.maximum(eligible.sum(), 1).astype(jnp.float32)
  return draws.members(ids, eligible[ids], jnp.minimum(1, size / there), len(eligible))
