"""Clients that are there at some times and not at others: diurnal and Markov traces.

Both come after the layer that draws: who is drawn and not there is left out before any work, so the
cohort is smaller (`unavailable` counts them). `chance` stays that of the draw, so inverse chances
average over the clients that are there. With `before_draw` they come before it: only who is there
is drawn, and a cohort of fixed size is full as long as there are enough.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Member, validate
from fedjax_mem.stages.select import _base as draws

NAME = 'available'


def diurnal(
  num_clients: int,
  low: float = 0.1,
  high: float = 0.9,
  period: int = 24,
  before_draw: bool = False,
) -> Layer:
  """Returns the layer of clients that come and go with the time of day.

  In round t client i is there with probability low + (high - low) (1 + sin(2 pi (t / period +
  f_i))) / 2, independently of other rounds; its phase f_i (its time zone) is uniform and drawn once
  from the seed.

  State: [N] float32.

  Args:
    num_clients: N, clients of the population.
    low: probability at night, in [0, 1].
    high: probability at noon, in [low, 1].
    period: rounds of a day, >= 1.
    before_draw: draw among those that are there.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(num_clients=num_clients)
  validate.fraction(low=low)
  validate.fraction(high=high)
  validate.integer(period=period)
  if high < low:
    raise ValueError(f'high must be at least low = {low!r}, got {high!r}.')

  def stays(ctx: Context, cohort: Member, phase: jax.Array):
    ids = cohort.id
    turn = (ctx.round % period).astype(jnp.float32) / period + phase.at[ids].get(mode='clip')
    probability = low + (high - low) * (1 + jnp.sin(2 * math.pi * turn)) / 2
    here = draws.each(ctx.key, jax.random.uniform, ids) < probability
    return here, phase, _counted(cohort, here)

  return _trace(stays, num_clients, before_draw, lambda drawn: drawn)


def markov(
  num_clients: int, leave: float = 0.1, join: float = 0.3, before_draw: bool = False
) -> Layer:
  """Returns the layer of clients that go on- and offline by a Markov chain each.

  From one round to the next a client that is on goes off with probability `leave`, and one that is
  off comes on with probability `join`; so it stays on for 1 / leave rounds on average, and is on in
  join / (join + leave) of them, also in the first.

  State: [N] bool. O(N) a round.

  Args:
    num_clients: N, clients of the population.
    leave: in [0, 1].
    join: in (0, 1].
    before_draw: draw among those that are there.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(num_clients=num_clients)
  validate.fraction(leave=leave)
  validate.probability(join=join)

  def stays(ctx: Context, cohort: Member, on: jax.Array):
    draw = jax.random.uniform(ctx.key, on.shape)
    here = on.at[cohort.id].get(mode='clip')
    return here, jnp.where(on, draw >= leave, draw < join), _counted(cohort, here)

  share = join / (join + leave)
  return _trace(stays, num_clients, before_draw, lambda drawn: drawn < share)


# By name, for configurations; they draw nobody, so they are none of `SAMPLERS`.
TRACES: dict[str, Callable[..., Layer]] = {'diurnal': diurnal, 'markov': markov}


def _trace(
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


def _counted(cohort: Member, here: jax.Array) -> dict[str, jax.Array]:
  return {'unavailable': (cohort.real & ~here).sum(dtype=jnp.int32)}
