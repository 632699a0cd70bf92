"""What availability traces share: a layer that leaves out clients that are not available.

A trace comes after the layer that draws. Clients that are drawn but not available are left out
before any work, so the cohort is smaller (metric: `unavailable`, their number). Inclusion
probabilities stay those of the draw, so weighting by their inverses averages over the available
clients. With `before_draw` the trace comes before the draw. Then only available clients are drawn,
and a cohort of fixed size is full as long as enough of them are available.
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
  """Returns the layer of a trace.

  Args:
    stays: decides which clients are available.
    num_clients: N.
    before_draw: whether the layer comes before the draw.
    first: makes the initial state from one uniform number per client, [N].
  """
  return draws.filtering(
    NAME,
    stays,
    before_work=True,
    num_clients=num_clients,
    before_draw=before_draw,
    init=lambda ctx: first(jax.random.uniform(ctx.key, (num_clients,), jnp.float32)),
  )


def counted(cohort: Member, here: jax.Array) -> dict[str, jax.Array]:
  """Returns the metric `unavailable`: drawn clients that are not `here` [C]."""
  return {'unavailable': (cohort.real & ~here).sum(dtype=jnp.int32)}
