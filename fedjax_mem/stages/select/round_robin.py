"""Clients in turn, in the fixed order of their ids."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Draws, Layer, Member, Metrics
from fedjax_mem.stages.select import _base as draws


def round_robin(num_clients: int, cohort_size: int) -> Layer:
  """Returns the layer that selects the next `cohort_size` clients, wrapping round at the end.

  >>> fm.apply([[1.0], [3.0], [50.0], [60.0]], round_robin(4, 2)).update.tolist()
  [2.0]

  The first round is that of clients 0 and 1.

  Args:
    num_clients: N, clients of the population.
    cohort_size: C, clients a round, 1 <= C <= N.

  Raises:
    ValueError: a size is not a whole number >= 1, or the cohort is larger than the population.
  """
  draws.check_cohort(num_clients, cohort_size)

  def draw(ctx: Context, eligible: Any, state: jax.Array) -> tuple[Member, jax.Array, Metrics]:
    del ctx, eligible
    ids = (state + jnp.arange(cohort_size, dtype=jnp.int32)) % num_clients
    cohort = draws.members(ids, jnp.ones(cohort_size, bool), cohort_size / num_clients, num_clients)
    # The next client is a state, not round * C: that product overflows int32 in a long run.
    return cohort, (state + cohort_size) % num_clients, {}

  law = Draws('cyclic', num_clients, cohort_size, cohort_size, num_clients // cohort_size)
  return Layer('select', select=draws.drawing(draw, law, init=lambda ctx: jnp.int32(0)))
