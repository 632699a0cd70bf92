"""Clients that are there at some times and not at others: diurnal and Markov traces."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Stage, validate

Tree = Any
# (ctx, own state) -> (whether a client with these ids [C] is there, [C]; own state)
Present = Callable[[Context, jax.Array, Tree], tuple[jax.Array, Tree]]


def diurnal(layer: Layer, low: float = 0.1, high: float = 0.9, period: int = 24) -> Layer:
  """Returns the selecting layer with clients that come and go with the time of day.

  In round t client i is there with probability low + (high - low) (1 + sin(2 pi (t / period +
  f_i))) / 2, independently of other rounds; its phase f_i (its time zone) is uniform and drawn once
  from the seed. Who is selected and not there is left out before any work: the cohort is smaller
  (`unavailable` counts them). `chance` stays the sampler's, so inverse chances average over the
  clients that are there.

  Server state, besides the sampler's own: [N] float32.

  Args:
    layer: a layer that selects.
    low: probability at night, in [0, 1].
    high: probability at noon, in [low, 1].
    period: rounds of a day, >= 1.

  Raises:
    ValueError: the layer does not select, or an argument is out of range.
  """
  validate.fraction(low=low)
  validate.fraction(high=high)
  validate.integer(period=period)
  if high < low:
    raise ValueError(f'high must be at least low = {low!r}, got {high!r}.')

  def present(ctx: Context, ids: jax.Array, phase: jax.Array):
    turn = (ctx.round % period).astype(jnp.float32) / period + phase.at[ids].get(mode='clip')
    probability = low + (high - low) * (1 + jnp.sin(2 * math.pi * turn)) / 2
    key = jax.random.fold_in(ctx.common, zlib.crc32(b'diurnal'))
    keys = jax.vmap(lambda id: jax.random.fold_in(key, id))(ids)
    return jax.vmap(jax.random.uniform)(keys) < probability, phase

  return _with(layer, 'diurnal', lambda key, number: jax.random.uniform(key, (number,)), present)


def markov(layer: Layer, leave: float = 0.1, join: float = 0.3) -> Layer:
  """Returns the selecting layer with clients that go on- and offline by a Markov chain each.

  From one round to the next a client that is on goes off with probability `leave`, and one that is
  off comes on with probability `join`; so it stays on for 1 / leave rounds on average, and is on in
  join / (join + leave) of them, also in the first. Who is selected and off is left out before any
  work, as in `diurnal`.

  Server state, besides the sampler's own: [N] bool. O(N) a round.

  Args:
    layer: a layer that selects.
    leave: in [0, 1].
    join: in (0, 1].

  Raises:
    ValueError: the layer does not select, or an argument is out of range.
  """
  validate.fraction(leave=leave)
  validate.probability(join=join)

  def present(ctx: Context, ids: jax.Array, on: jax.Array):
    key = jax.random.fold_in(ctx.common, zlib.crc32(b'markov'))
    draw = jax.random.uniform(key, on.shape)
    return on.at[ids].get(mode='clip'), jnp.where(on, draw >= leave, draw < join)

  first = lambda key, number: jax.random.uniform(key, (number,)) < join / (join + leave)
  return _with(layer, 'markov', first, present)


# By name, for configurations; they wrap a sampler, so they are none of `SAMPLERS`.
TRACES: dict[str, Callable[..., Layer]] = {'diurnal': diurnal, 'markov': markov}


def _with(
  layer: Layer, name: str, first: Callable[[jax.Array, int], Tree], present: Present
) -> Layer:
  """Returns the selecting layer whose server state is (the sampler's, the trace's)."""
  inner = layer.select
  if inner is None:
    raise ValueError(f'layer must be one that selects, got {layer.name!r}.')
  number = inner.sampling.population
  own = lambda ctx: ctx if ctx.shared is None else ctx._replace(shared=ctx.shared[0])

  def apply(ctx: Context, table: Tree, state: Tree):
    cohort, inside, metrics = inner.apply(own(ctx), table, state[0])
    here, trace = present(ctx, cohort.id, state[1])
    gone = (cohort.real & ~here).sum(dtype=jnp.int32) + metrics.get('unavailable', 0)
    real = cohort.real & here
    cohort = cohort._replace(
      id=jnp.where(real, cohort.id, number),
      real=real,
      arrived=cohort.arrived & here,
      chance=jnp.where(real, cohort.chance, 1.0),
    )
    return cohort, (inside, trace), {**metrics, 'unavailable': gone}

  def init(ctx: Context) -> Tree:
    # A name of its own: the sampler may draw from the bare key.
    key = jax.random.fold_in(ctx.key, zlib.crc32(name.encode()))
    return layer.server.init(ctx), first(key, number)

  def serve(ctx: Context, value: Any, state: Tree):
    value, inside, metrics = layer.server.apply(own(ctx), value, state[0])
    return value, (inside, state[1]), metrics

  def work(ctx: Context, value: Any, state: Tree):
    return layer.client.apply(own(ctx), value, state)

  plain = Stage()
  # What is not there stays the default: plans tell a sampler with feedback from one without by it.
  server = Stage(plain.apply if layer.server.apply is plain.apply else serve, init)
  client = layer.client if layer.client == plain else layer.client._replace(apply=work)
  return layer._replace(select=inner._replace(apply=apply), client=client, server=server)
