"""A random cohort of fixed size, with a minimum separation between a client's participations."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Draws, Layer, Member, Metrics, validate
from fedjax_mem.stages.select import _base as draws


def min_separation(num_clients: int, cohort_size: int, separation: int) -> Layer:
  """Returns the layer that selects uniformly among clients that paused for `separation` - 1 rounds.

  Two participations of a client are always at least `separation` rounds apart (min_sep), as
  correlated noise needs. If `separation` > 1, the accountant claims no amplification by sampling.

  State: [N] int32, rounds until a client may be drawn again. O(N log N) per round.

  >>> min_separation(100, 10, separation=5).fact(fm.Draws).min_sep
  5

  Reference: Kairouz et al. (2021), arXiv 2103.00039, section 5 (participation restricted in time).

  Args:
    num_clients: N, clients of the population.
    cohort_size: C, clients a round, 1 <= C <= N.
    separation: min_sep, minimum difference of the rounds of two participations of a client,
      1 <= separation <= N / C, so that enough clients are always free.

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

  def draw(ctx: Context, eligible: Any, wait: jax.Array) -> tuple[Member, jax.Array, Metrics]:
    del eligible
    bits = jax.random.bits(ctx.key, (num_clients,), jnp.uint32)
    everyone = jnp.arange(num_clients, dtype=jnp.int32)
    busy = (wait > 0).astype(jnp.int32)
    # Free clients first, in random order: C of them are always free.
    ids = jax.lax.sort((busy, bits, everyone), num_keys=2)[2][:cohort_size]
    wait = jnp.maximum(wait - 1, 0).at[ids].set(separation - 1)
    chance = cohort_size / num_clients
    return draws.members(ids, jnp.ones(cohort_size, bool), chance, num_clients), wait, {}

  law = Draws('without_replacement', num_clients, cohort_size, cohort_size, separation)
  init = lambda ctx: jnp.zeros(num_clients, jnp.int32)
  return Layer('select', select=draws.drawing(draw, law, init=init))
