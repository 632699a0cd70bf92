"""A Markov trace: clients that go on- and offline at random."""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Member, validate
from fedjax_mem.stages.select._trace import counted, trace


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
    return here, jnp.where(on, draw >= leave, draw < join), counted(cohort, here)

  share = join / (join + leave)
  return trace(stays, num_clients, before_draw, lambda drawn: drawn < share)
