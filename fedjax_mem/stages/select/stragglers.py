"""Stragglers: durations of clients on a virtual clock, and a deadline for a round."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Context, Layer, Member, Metrics, Tree, validate
from fedjax_mem.stages.select import _base as draws


def stragglers(
  num_clients: int,
  durations: Sequence[float],
  deadline: float | None = None,
  jitter: float = 0.0,
  looks: str = "others' data",
  public: str = '',
) -> Layer:
  """Returns the layer that gives clients durations, and loses clients that miss the deadline.

  In a round client i takes durations[i] exp(jitter z) virtual seconds, z standard normal and drawn
  from (seed, round, client). With a deadline, a client that takes longer drops out: its work is
  lost, and its state is not committed. The layer comes last of the layers that select. It keeps no
  state.

  Metrics: `late`, clients that miss the deadline, and `virtual_seconds`, the duration of the round;
  their sum is the time on the virtual clock. The round ends with the slowest client that arrives,
  or at the deadline if a selected client does not arrive. Without a deadline the server does not
  wait for clients that drop out otherwise.

  >>> applied = fm.apply([[1.0], [3.0], [50.0]], stragglers(3, [1.0, 2.0, 60.0], deadline=10.0))
  >>> applied.update.tolist(), float(applied.metrics['select/virtual_seconds'])
  ([2.0], 10.0)

  Args:
    num_clients: N, clients of the population.
    durations: median virtual seconds of each client [N], > 0, such as from `draw_durations`.
    deadline: virtual seconds after which the server stops waiting, > 0; None: it waits for all.
    jitter: standard deviation of the log of a duration from round to round, >= 0.
    looks: what the durations depend on: 'nothing' if they are public, 'own data' if each one is a
      function of that client's examples only, else "others' data". Under differential privacy only
      the first two may decide which clients arrive.
    public: what of clients' data the durations take as public, for every guarantee to say.

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

  def stays(ctx: Context, cohort: Member, state: Tree) -> tuple[jax.Array, Tree, Metrics]:
    factor = jnp.exp(jitter * draws.each(ctx.key, jax.random.normal, cohort.id))
    seconds = jnp.asarray(median).at[cohort.id].get(mode='clip') * factor
    late = cohort.arrived & (seconds > (jnp.inf if deadline is None else deadline))
    arrived = cohort.arrived & ~late
    lasts = jnp.where(arrived, seconds, 0.0).max()
    if deadline is not None:
      lasts = jnp.where((cohort.real & ~arrived).any(), jnp.float32(deadline), lasts)
    return ~late, state, {'late': late.sum(dtype=jnp.int32), 'virtual_seconds': lasts}

  # Without a deadline no client is left out, so the durations decide nothing.
  at, public = ('nothing', '') if deadline is None else (looks, public)
  return draws.filtering('deadline', stays, before_work=False, looks=at, public=public)


def draw_durations(
  num_clients: int,
  median_seconds: float,
  spread: float = 0.5,
  seed: int = 0,
  sizes: Sequence[float] | None = None,
) -> np.ndarray:
  """Returns virtual seconds of each client [N]: log-normal, times its number of examples.

  >>> draw_durations(3, median_seconds=10.0, spread=0.0, sizes=[1, 2, 3]).tolist()
  [5.0, 10.0, 15.0]

  Args:
    num_clients: N.
    median_seconds: median duration of a client with the mean number of examples, > 0.
    spread: standard deviation of the log of a client's seconds per example, >= 0.
    seed: seed of the draw, >= 0; durations are a function of it.
    sizes: examples of each client [N]; None: all equal.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(num_clients=num_clients)
  validate.positive(median_seconds=median_seconds)
  validate.non_negative(spread=spread)
  validate.integer(0, seed=seed)
  size = draws.per_client(num_clients, sizes=sizes)
  rng = np.random.default_rng([seed, zlib.crc32(b'durations')])
  pace = np.exp(spread * rng.standard_normal(num_clients))
  seconds: np.ndarray = median_seconds * pace * size / size.mean()
  return seconds.astype(np.float32)
