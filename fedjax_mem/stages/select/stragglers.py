"""Slow clients on a virtual clock: how long a round takes, and who is too late."""

import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Context, Layer, validate
from fedjax_mem.stages.select import draws


def stragglers(
  layer: Layer,
  durations: Sequence[float],
  deadline: float | None = None,
  jitter: float = 0.0,
) -> Layer:
  """Returns the selecting layer with clients that take time, and are lost after the deadline.

  In a round client i takes durations[i] exp(jitter z) virtual seconds, z standard normal and drawn
  from (seed, round, client). With a deadline, whoever takes longer has dropped out (`late` counts
  them): its work is lost, and its state is not committed. The metric `virtual_seconds` is how long
  the round lasts: until the slowest of those that arrive, or until the deadline if someone that was
  selected does not. Without a deadline the server does not wait for those that drop out otherwise.
  Nothing is kept: the clock's time is the sum of the metric.

  Args:
    layer: a layer that selects; of those that change it (`dropout`, traces) the outermost.
    durations: virtual seconds of each client [N], > 0, such as from `draw_durations`.
    deadline: virtual seconds after which the server waits no longer, > 0; None: it waits for all.
    jitter: standard deviation of the log of a duration from round to round, >= 0.

  Raises:
    ValueError: the layer does not select, or an argument is out of range.
  """
  inner = layer.select
  if inner is None:
    raise ValueError(f'layer must be one that selects, got {layer.name!r}.')
  if durations is None:
    raise ValueError(f'durations must be given, one a client, got {durations!r}.')
  median = draws.per_client(inner.sampling.population, durations=durations)
  validate.non_negative(jitter=jitter)
  if deadline is not None:
    validate.positive(deadline=deadline)

  def apply(ctx: Context, table, state):
    cohort, state, metrics = inner.apply(ctx, table, state)
    key = jax.random.fold_in(ctx.common, zlib.crc32(b'stragglers'))
    keys = jax.vmap(lambda id: jax.random.fold_in(key, id))(cohort.id)
    factor = jnp.exp(jitter * jax.vmap(jax.random.normal)(keys))
    seconds = jnp.asarray(median).at[cohort.id].get(mode='clip') * factor
    late = cohort.arrived & (seconds > (jnp.inf if deadline is None else deadline))
    arrived = cohort.arrived & ~late
    lasts = jnp.where(arrived, seconds, 0.0).max()
    if deadline is not None:
      lasts = jnp.where((cohort.real & ~arrived).any(), jnp.float32(deadline), lasts)
    noted = {'late': late.sum(dtype=jnp.int32), 'virtual_seconds': lasts}
    return cohort._replace(arrived=arrived), state, {**metrics, **noted}

  return layer._replace(select=inner._replace(apply=apply))


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
