"""A Markov availability trace: clients that go online and offline at random."""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Member, Metrics, validate
from fedjax_mem.stages.select._trace import counted, trace


def markov(
  num_clients: int, leave: float = 0.1, join: float = 0.3, before_draw: bool = False
) -> Layer:
  """Returns the layer that leaves out clients that are offline, by one Markov chain per client.

  From one round to the next an online client goes offline with probability `leave`, and an offline
  client comes online with probability `join`. So a client stays online for 1 / leave rounds on
  average. It is online in a share join / (join + leave) of the rounds; the chain starts with that
  probability. Metric: `unavailable`.

  State: [N] bool. O(N) per round.

  >>> applied = fm.apply(np.ones((1000, 1)), markov(1000, leave=0.1, join=0.3))
  >>> 200 < int(applied.metrics['select/unavailable']) < 300
  True

  Args:
    num_clients: N, clients of the population.
    leave: probability of going offline, in [0, 1].
    join: probability of coming online, in (0, 1].
    before_draw: whether the layer comes before the draw: only online clients are drawn.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(num_clients=num_clients)
  validate.fraction(leave=leave)
  validate.probability(join=join)

  def stays(ctx: Context, cohort: Member, on: jax.Array) -> tuple[jax.Array, jax.Array, Metrics]:
    draw = jax.random.uniform(ctx.key, on.shape, jnp.float32)
    here = on.at[cohort.id].get(mode='clip')
    return here, jnp.where(on, draw >= leave, draw < join), counted(cohort, here)

  share = join / (join + leave)
  return trace(stays, num_clients, before_draw, lambda drawn: drawn < share)
