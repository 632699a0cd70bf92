"""Slow clients on a virtual clock: how long a round takes, and who is too late."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Context, Layer, Member, validate
from fedjax_mem.stages.select import _base as draws


def stragglers(
  num_clients: int,
  durations: Sequence[float],
  deadline: float | None = None,
  jitter: float = 0.0,
  looks: str = "others' data",
) -> Layer:
  """Returns the layer of clients that take time, and are lost after the deadline.

  In a round client i takes durations[i] exp(jitter z) virtual seconds, z standard normal and drawn
  from (seed, round, client). With a deadline, whoever takes longer has dropped out (`late` counts
  them): its work is lost, and its state is not committed. The metric `virtual_seconds` is how long
  the round lasts: until the slowest of those that arrive, or until the deadline if someone that was
  selected does not. Without a deadline the server does not wait for those that drop out otherwise.
  Nothing is kept: the clock's time is the sum of the metric. It comes last of the layers that
  select.

  Args:
    num_clients: N, clients of the population.
    durations: virtual seconds of each client [N], > 0, such as from `draw_durations`.
    deadline: virtual seconds after which the server waits no longer, > 0; None: it waits for all.
    jitter: standard deviation of the log of a duration from round to round, >= 0.
    looks: what the durations depend on: 'nothing' where they are public, 'own data' where each is a
      function of that client's examples alone, else "others' data". Only the first two may decide
      who arrives under differential privacy.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(num_clients=num_clients)
  if durations is None:
    raise ValueError(f'durations must be given, one a client, got {durations!r}.')
  median = draws.per_client(num_clients, durations=durations)
  validate.non_negative(jitter=jitter)
  if deadline is not None:
    validate.positive(deadline=deadline)

  def stays(ctx: Context, cohort: Member, state):
    factor = jnp.exp(jitter * draws.each(ctx.key, jax.random.normal, cohort.id))
    seconds = jnp.asarray(median).at[cohort.id].get(mode='clip') * factor
    late = cohort.arrived & (seconds > (jnp.inf if deadline is None else deadline))
    arrived = cohort.arrived & ~late
    lasts = jnp.where(arrived, seconds, 0.0).max()
    if deadline is not None:
      lasts = jnp.where((cohort.real & ~arrived).any(), jnp.float32(deadline), lasts)
    return ~late, state, {'late': late.sum(dtype=jnp.int32), 'virtual_seconds': lasts}

  # Without a deadline nobody is left out.
  at = 'nothing' if deadline is None else looks
  return draws.filtering('deadline', stays, before_work=False, looks=at)


def draw_durations(
  num_clients: int,
  median_seconds: float,
  spread: float = 0.5,
  seed: int = 0,
  sizes: Sequence[float] | None = None,
) -> np.ndarray:
  """Returns virtual seconds of each client [N]: log-normal speeds, in proportion to its examples.

  Args:
    num_clients: N.
    median_seconds: of a client of the mean size, > 0.
    spread: standard deviation of the log of a client's speed, >= 0.
    seed: they are a function of the seed.
    sizes: examples of each client [N]; None: all alike.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(num_clients=num_clients)
  validate.positive(median_seconds=median_seconds)
  validate.non_negative(spread=spread)
  validate.integer(0, seed=seed)
  size = draws.per_client(num_clients, sizes=sizes)
  rng = np.random.default_rng([seed, zlib.crc32(b'durations')])
  speed = np.exp(spread * rng.standard_normal(num_clients))
  return (median_seconds * speed * size / size.mean()).astype(np.float32)
