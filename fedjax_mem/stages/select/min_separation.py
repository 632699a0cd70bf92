"""A random cohort of fixed size in which nobody takes part again too soon."""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Draws, Layer, validate
from fedjax_mem.stages.select import _base as draws


def min_separation(num_clients: int, cohort_size: int, separation: int) -> Layer:
  """Returns the layer that selects uniformly among those who sat out `separation` - 1 rounds.

  What correlated noise needs: at least `separation` rounds lie between two participations of a
  client, for good. Nothing is gained by sampling: the accountant claims no amplification.

  State: [N] int32, rounds until a client may be drawn again. O(N log N) a round.

  Reference: Kairouz et al. (2021), arXiv 2103.00039, section 5 (participation restricted in time).

  Args:
    num_clients: N, clients of the population.
    cohort_size: C, clients a round, 1 <= C <= N.
    separation: rounds between two participations at the least, 1 <= separation <= N / C: so many
      that enough clients are always free.

  Raises:
    ValueError: a size is not a whole number >= 1, or too few clients would be free.
  """
  draws.check_cohort(num_clients, cohort_size)
  validate.integer(separation=separation)
  if separation * cohort_size > num_clients:
    raise ValueError(
      f'separation must be at most {num_clients // cohort_size}, or too few of {num_clients} '
      f'clients are free for a cohort of {cohort_size}, got {separation!r}.'
    )

  def draw(ctx: Context, eligible, wait: jax.Array):
    del eligible
    bits = jax.random.bits(ctx.key, (num_clients,), jnp.uint32)
    everyone = jnp.arange(num_clients, dtype=jnp.int32)
    busy = (wait > 0).astype(jnp.int32)
    ids = jax.lax.sort((busy, bits, everyone), num_keys=2)[2][:cohort_size]
    wait = jnp.maximum(wait - 1, 0).at[ids].set(separation - 1)
    chance = cohort_size / num_clients
    return draws.members(ids, jnp.ones(cohort_size, bool), chance, num_clients), wait, {}

  law = Draws('without_replacement', num_clients, cohort_size, cohort_size, separation)
  init = lambda ctx: jnp.zeros(num_clients, jnp.int32)
  return Layer('select', select=draws.drawing(draw, law, init=init))
