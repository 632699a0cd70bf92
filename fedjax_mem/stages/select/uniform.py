"""A uniform cohort of fixed size, drawn without replacement."""

import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Sampler, Sampling, Traits
from fedjax_mem.stages.select import draws


def uniform(num_clients: int, cohort_size: int) -> Layer:
  """Returns the layer that selects `cohort_size` distinct clients, every set equally likely.

  Reference: McMahan et al. (2017), arXiv 1602.05629, Algorithm 1. O(cohort_size log cohort_size).

  Args:
    num_clients: N, clients of the population.
    cohort_size: C, clients a round, 1 <= C <= N.

  Raises:
    ValueError: a size is not a whole number >= 1, or the cohort is larger than the population.
  """
  draws.check_cohort(num_clients, cohort_size)
  chance = cohort_size / num_clients

  def apply(ctx: Context, table, state):
    del table
    ids = draws.ordered_sample(ctx.key, num_clients, cohort_size)
    return draws.members(ids, jnp.ones(cohort_size, bool), chance, num_clients), state, {}

  sampling = Sampling('without_replacement', num_clients, cohort_size, cohort_size)
  return Layer('select', select=Sampler(apply, sampling), traits=Traits(kind='select'))
