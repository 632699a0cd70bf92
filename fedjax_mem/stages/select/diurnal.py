"""A diurnal availability trace: the time of day decides how likely a client is available."""

import math

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Member, Metrics, validate
from fedjax_mem.stages.select import _base as draws
from fedjax_mem.stages.select._trace import counted, trace


def diurnal(
  num_clients: int,
  low: float = 0.1,
  high: float = 0.9,
  period: int = 24,
  before_draw: bool = False,
) -> Layer:
  """Returns the layer that leaves clients out by the time of day.

  In round t client i is available with probability low + (high - low) (1 + sin(2 pi (t / period +
  f_i))) / 2, independently of other rounds. Its phase f_i (its time zone) is uniform and drawn once
  from the seed. The mean probability is (low + high) / 2. Metric: `unavailable`.

  State: [N] float32.

  >>> applied = fm.apply(np.ones((1000, 1)), diurnal(1000, low=0.1, high=0.9))
  >>> 400 < int(applied.metrics['select/unavailable']) < 600
  True

  Args:
    num_clients: N, clients of the population.
    low: probability at night, in [0, 1].
    high: probability at noon, in [low, 1].
    period: rounds of a day, >= 1.
    before_draw: whether the layer comes before the draw: only available clients are drawn.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(num_clients=num_clients)
  validate.fraction(low=low)
  validate.fraction(high=high)
  validate.integer(period=period)
  if high < low:
    raise ValueError(f'high must be at least low = {low!r}, got {high!r}.')

  def stays(ctx: Context, cohort: Member, phase: jax.Array) -> tuple[jax.Array, jax.Array, Metrics]:
    ids = cohort.id
    # Modulo in integers: a large round number would lose the phase in float32.
    turn = (ctx.round % period).astype(jnp.float32) / period + phase.at[ids].get(mode='clip')
    probability = low + (high - low) * (1 + jnp.sin(2 * math.pi * turn)) / 2
    here = draws.each(ctx.key, jax.random.uniform, ids) < probability
    return here, phase, counted(cohort, here)

  return trace(stays, num_clients, before_draw, lambda drawn: drawn)
