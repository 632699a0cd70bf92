"""What traces of availability share: a layer that leaves out who is not there.

A trace comes after the layer that draws: who is drawn and not there is left out before any work, so
the cohort is smaller (`unavailable` counts them). `chance` stays that of the draw, so inverse
chances average over the clients that are there. With `before_draw` it comes before the draw: only
who is there is drawn, and a cohort of fixed size is full as long as there are enough.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, Member
from fedjax_mem.stages.select import _base as draws

NAME = 'available'


def trace(
  stays: draws.Staying, num_clients: int, before_draw: bool, first: Callable[[jax.Array], jax.Array]
) -> Layer:
  """Returns the layer of a trace whose first state is made of a uniform number a client, [N]."""
  return draws.filtering(
    NAME,
    stays,
    before_work=True,
    num_clients=num_clients,
    before_draw=before_draw,
    init=lambda ctx: first(jax.random.uniform(ctx.key, (num_clients,))),
  )


def counted(cohort: Member, here: jax.Array) -> dict[str, jax.Array]:
  return {'unavailable': (cohort.real & ~here).sum(dtype=jnp.int32)}
