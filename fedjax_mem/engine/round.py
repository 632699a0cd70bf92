"""One round: select, client halves, sum, server halves. The one file that knows the order."""

from collections.abc import Callable
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  IncompatibleStages,
  Layer,
  Mean,
  Message,
  Population,
  Shape,
  State,
  Task,
  Total,
  selector,
  tree,
)
from fedjax_mem.engine import cohort as cohorts
from fedjax_mem.engine import pooled, rules, tables
from fedjax_mem.engine.clients import Layout, Step, side_by_side, spread, summing
from fedjax_mem.engine.context import Broadcast, Row, context, examples

Tree = Any
RoundFn = Callable[[State, Population, jax.Array], tuple[State, dict[str, jax.Array]]]


class Setting(NamedTuple):
  """What is fixed about the rounds of a run.

  Attributes:
    layers: the onion.
    shape: static facts about the population.
    capacity: C, rows of a cohort with padding.
    layout: how the cohort is laid out.
    like: for each layer after the algorithm, the shapes of what its client half receives.
    transforms: functions batch -> batch, applied to what is gathered (normalisation).
    pool: how to sum over all examples of the cohort at once, or None.
    divided: whether the tables of client states are divided over the devices, and their rows
      written in the loop over clients.
    round: the round of this setting, jitted: traced once for all that asks for its shapes and for
      the program of many rounds; None until the plan has checked it.
  """

  layers: tuple[Layer, ...]
  shape: Shape
  capacity: int
  layout: Layout
  like: dict[str, Tree]
  transforms: tuple[Callable[[dict], dict], ...] = ()
  pool: Any = None
  divided: bool = False
  round: Any = None


def make_round(setting: Setting) -> RoundFn:
  """Returns (state, population, seed) -> (state, metrics) of one round.

  Metrics are scalars named 'layer/metric', and the round's own: `clients` that counted, `examples`
  of theirs, `selected`, `ids` of those [C] (-1: padding), `not_finite` (ids [C] of clients left
  out since their update was not finite, else -1) and `finite` (whether the new parameters are).
  """

  def round(state: State, population: Population, seed: jax.Array):
    cast, metrics = _select(setting, state, population, seed)
    row = cohorts.rows(population, cast.cohort)
    if not setting.shape.equal:
      row = cohorts.arrange(row, setting.layout.chunk, setting.layout.devices)
    elif setting.divided:
      row = tables.at_home(row, setting.shape.num_clients, setting.layout.devices)
    cast = cast._replace(cohort=row.me)
    message, new, ok, sound, noted = _messages(setting, cast, row, state.clients)
    metrics |= noted
    not_finite = jnp.where(cast.cohort.arrived & ~ok, cast.cohort.id, -1)
    cast = _left_out(cast, ok)
    params, servers, noted, released = _server(setting, cast, message)
    metrics |= noted
    arrived = cast.cohort.arrived
    clients = new
    if not setting.divided:
      kept = arrived & sound & released
      clients = cohorts.commit(state.clients, cast.cohort.id, kept, new, setting.layout.mesh)
    metrics |= {
      'selected': cast.cohort.real.sum(dtype=jnp.int32),
      'clients': arrived.sum(dtype=jnp.int32),
      'examples': jnp.where(arrived, row.count, 0).sum(dtype=jnp.int32),
      'ids': jnp.where(cast.cohort.real, cast.cohort.id, -1),
      'not_finite': not_finite,
      'finite': tree.finite(params),
    }
    return State(state.round + 1, params, clients, servers), metrics

  return round


def _select(
  setting: Setting, state: State, population: Population, seed: jax.Array
) -> tuple[Broadcast, dict]:
  """Returns what everyone knows in this round, the cohort in it, and the sampler's metrics."""
  servers = dict(state.servers)
  cast = Broadcast(
    seed, state.round, state.params, None, servers, population.arrays, population.index
  )
  name, sampler = selector(setting.layers)
  layer = next(x for x in setting.layers if x.name == name)
  ctx = context(layer, 'select', cast, {})
  table = tables.whole(state.clients[name], setting.layout.mesh)
  drawn, own, metrics = sampler.apply(ctx, table, servers[name])
  cohort = cohorts.pad(drawn, setting.capacity, setting.shape.num_clients)
  servers[name] = own
  return cast._replace(cohort=cohort, servers=servers), _scalars(layer, metrics)


def _messages(setting: Setting, cast: Broadcast, row: Row, states: dict[str, Tree]):
  """Returns what `_clients` does, from all examples at once where the plan found that they pool.

  A sum that is not finite cannot tell whose fault it is: then the clients run one by one.
  """
  each = lambda: _clients(setting, cast, row, states)
  if setting.pool is None:
    return each()
  message, metrics = pooled.run(setting.pool, setting, cast, row)
  everyone = jnp.ones(setting.capacity, bool)
  old = cohorts.gather(states, cast.cohort.id)
  pooled_ones = lambda: (message, old, everyone, everyone, metrics)
  return jax.lax.cond(tree.finite(message), pooled_ones, each)


def _clients(setting: Setting, cast: Broadcast, row: Row, states: dict[str, Tree]):
  """Runs all client halves.

  Returns:
    The sum of messages, new client states [C, ...] (the tables with them, if divided), whether
    clients [C] are ok, whether their new states [C] are finite, and metrics.
  """
  layers = setting.layers
  value: Any = None
  new: dict[str, Tree] = {}
  metrics: dict[str, Any] = {}
  ok = sound = jnp.ones(setting.capacity, bool)
  for stacked, members in groupby(layers, key=lambda x: x.stacked):
    group = list(members)
    last = group[-1] is layers[-1]
    if stacked:
      for layer in group:
        if layer is not group[0]:
          # What an attack sends is named, too, before a rule leaves it out.
          ok &= tree.finite(value, 1)
        cast = _left_out(cast, ok)
        ctx = context(layer, 'cohort', cast, setting.like, cast.cohort)
        half = rules.stacked_half(layer, setting.layout.mesh)
        old = cohorts.gather(states[layer.name], cast.cohort.id)
        value, new[layer.name], noted = half(ctx, value, old)
        _check_state(layer, new[layer.name], old)
        metrics |= _scalars(layer, noted)
        sound &= tree.finite(new[layer.name], 1)
      if last:
        ok &= tree.finite(value, 1)
        value = tree.total(tree.keep(cast.cohort.arrived & ok, value))
      continue
    own = {x.name: states[x.name] for x in group}
    held, given = (own, ()) if setting.divided else ((), own)
    value, held, (made, noted, fine, kept) = spread(
      _step(setting, group, first=group[0] is layers[0], last=last),
      (cast, given),
      held,
      (row, value, jnp.arange(setting.capacity, dtype=jnp.int32)),
      chunk=None if setting.layout.looped else setting.layout.chunk,
      mesh=setting.layout.mesh,
      summed=last,
    )
    new |= held if setting.divided else made
    ok &= fine
    sound &= kept
    metrics |= _over_cohort(noted, cast.cohort.arrived & ok)
  return value, new, ok, sound, metrics


def _check_state(layer: Layer, new: Tree, old: Tree) -> None:
  """Raises unless a client state keeps its structure, shapes and dtypes."""
  # Writing the rows into the table would cast them to its dtypes, silently.
  if not tree.same(new, old):
    raise ValueError(
      f'the client state of {layer.name!r} must keep its structure, shapes and dtypes, '
      f'{tree.shapes(old)!r}, got {tree.shapes(new)!r}.'
    )


def _left_out(cast: Broadcast, ok: jax.Array) -> Broadcast:
  """Returns the broadcast in which clients that are not `ok` [C] count as lost.

  Layers that see the cohort treat both alike: masks of either are recovered.
  """
  cohort = cast.cohort
  return cast._replace(cohort=cohort._replace(arrived=cohort.arrived & ok))


def _step(setting: Setting, group: list[Layer], first: bool, last: bool) -> Step:
  """Returns what clients side by side do in these layers, none of them stacked."""
  layout, population = setting.layout, setting.shape.num_clients
  chain = _chain(setting, group, first, last)
  block = side_by_side(chain, lambda packed: packed[0].count, layout)
  if last and not layout.looped:
    block = summing(block)

  # Here and not for the whole cohort at once: a row is read when it is needed, and only then.
  def step(everyone: tuple, held: Tree, packed: tuple) -> tuple[Tree, Tree, Tree]:
    (cast, given), (row, value, slot) = everyone, packed
    if not setting.divided:
      old = cohorts.gather(given, row.me.id)
      value, rest = block(cast, (row, value, old))
      return value, held, rest
    turn = tables.turn(cast.cohort.id, slot, population, layout)
    old = tables.read(held, turn)
    value, (new, metrics, ok, sound) = block(cast, (row, value, old))
    held = tables.write(held, turn, row.me.arrived & ok & sound, new)
    return value, held, ({}, metrics, ok, sound)

  return step


def _chain(setting: Setting, group: list[Layer], first: bool, last: bool):
  """Returns what one client does in these layers, none of them stacked."""
  ragged = not (setting.layout.looped or setting.shape.equal)

  def one(cast: Broadcast, longest: jax.Array, packed: tuple) -> tuple[Tree, Tree]:
    row, value, old = packed
    new: dict[str, Tree] = {}
    metrics: dict[str, Any] = {}
    ok = jnp.bool_(True)
    if first:
      value = Task(
        cast.params, examples(cast, row, longest, setting.shape, ragged, setting.transforms)
      )
    for layer in group:
      ctx = context(layer, 'client', cast, setting.like, row.me)
      value, new[layer.name], noted = layer.client.apply(ctx, value, old[layer.name])
      _check_state(layer, new[layer.name], old[layer.name])
      metrics |= _named(layer, noted)
      if layer.traits.kind == 'algorithm':
        # Before anything is encoded: a NaN would become some integer or other.
        ok &= tree.finite(value)
        value = tree.keep(ok, value)
    if last:
      ok &= tree.finite(value)
      value = tree.keep(row.me.arrived & ok, value)
    else:
      value = tree.keep(row.me.real, value)
    return value, (new, metrics, ok, tree.finite(new))

  return one


def _server(setting: Setting, cast: Broadcast, message: Message):
  """Returns (new parameters, server states, metrics, released): all server halves, last first.

  Where a layer withholds the sum, parameters and states are those from before.
  """
  value: Any = message
  servers = dict(cast.servers)
  metrics: dict[str, Any] = {}
  released = jnp.bool_(True)
  for layer in reversed(setting.layers):
    ctx = context(layer, 'server', cast, setting.like)
    value, servers[layer.name], noted = layer.server.apply(ctx, value, servers[layer.name])
    metrics |= _scalars(layer, noted)
    # From the algorithm on it is parameters.
    wanted = setting.like.get(layer.name, tree.shapes(cast.params))
    if not tree.same(value, wanted):
      raise IncompatibleStages(
        f'the server half of {layer.name!r} must return what its client half receives, '
        f'{wanted!r}, got {tree.shapes(value)!r}.'
      )
    if layer.traits.withholds:
      released &= value.weight >= 0
  if any(x.traits.withholds for x in setting.layers):
    value, servers = tree.select(released, (value, servers), (cast.params, dict(cast.servers)))
  return value, servers, metrics, released


def _named(layer: Layer, metrics: dict[str, Any]) -> dict[str, Any]:
  return {f'{layer.name}/{name}': value for name, value in metrics.items()}


def _scalars(layer: Layer, metrics: dict[str, Any]) -> dict[str, jax.Array]:
  """Returns the metrics of what is done once in a round, each one number."""

  def value(metric: Any) -> Any:
    if isinstance(metric, Total):
      return metric.value
    return _mean(metric.total, metric.count) if isinstance(metric, Mean) else metric

  named = {name: value(metric) for name, metric in _named(layer, metrics).items()}
  for name, metric in named.items():
    _check_scalar(name, jnp.shape(metric))
  return named


def _over_cohort(metrics: dict[str, Any], on: jax.Array) -> dict[str, jax.Array]:
  """Returns the metrics of the clients that are `on` [C] as scalars; NaN where there is none."""

  def reduce(value: Any) -> jax.Array:
    if isinstance(value, Total):
      return tree.keep(on, value.value).sum()
    if not isinstance(value, Mean):
      value = Mean(value.astype(jnp.float32), jnp.ones(on.shape, jnp.float32))
    return _mean(*(tree.keep(on, x).sum() for x in (value.total, value.count)))

  for name, value in metrics.items():
    for x in jax.tree.leaves(value):
      _check_scalar(name, x.shape[1:])
  return {name: reduce(value) for name, value in metrics.items()}


def _mean(total: jax.Array, count: jax.Array) -> jax.Array:
  return jnp.where(count > 0, total / count, jnp.nan)


def _check_scalar(name: str, shape: tuple[int, ...]) -> None:
  if shape:
    raise ValueError(f'metric {name!r} must be a scalar, a Mean or a Total, got shape {shape!r}.')
