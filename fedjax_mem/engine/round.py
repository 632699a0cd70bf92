"""One compiled round: the passes of the walk, mapped over the cohort.

A round draws the cohort (`select`), makes the sum of its messages (`_messages`), steps the server
(`walk.server_pass`) and commits the clients' new states (`settle`). The messages come from
`collect`, which runs the segments of the round one after another: client sides chunk by chunk,
where the last segment is summed at once, and cohort sides on the whole stack. Where nothing needs
the message of a single client, `pooled.run` computes their sum in a faster way.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fedjax_mem.core import (
  Covered,
  Layer,
  Member,
  Metrics,
  Population,
  State,
  Task,
  Tree,
  packing,
  tree,
)
from fedjax_mem.engine import apart, hiding, places, pooled, rules, shards, tables, walk
from fedjax_mem.engine import cohort as cohorts
from fedjax_mem.engine.cast import Cast, Row, broadcast, examples
from fedjax_mem.engine.clients import (
  OneClient,
  Step,
  everywhere,
  gathered,
  side_by_side,
  spread,
  summing,
)
from fedjax_mem.engine.mesh import undivided, whole
from fedjax_mem.engine.metrics import over_cohort
from fedjax_mem.engine.setting import Setting
from fedjax_mem.kernels.loops import across

# (sum of messages, client states, whether each client's message is finite [C], whether its new
# states are [C], metrics)
Ran = tuple[Any, dict[str, Tree], jax.Array, jax.Array, Metrics]
# (messages [C, ...] or, from the last sides, their sum; new client states; metrics; whether each
# client's message is finite [C]; whether its new states are [C])
Mapped = tuple[Any, dict[str, Tree], Metrics, jax.Array, jax.Array]
# What all clients get: the cast, the tables of client states unless these are divided, and the rows
# of the cohort.
Everyone = tuple[Cast, Tree, Row]
# What each client gets: its row, its value, and its place in the cohort or its state.
Packed = tuple[Row, Any, Tree]
# (state, population, seed, secret root) -> (state, metrics)
RoundFn = Callable[[State, Population, jax.Array, jax.Array], tuple[State, Metrics]]


def make_round(setting: Setting) -> RoundFn:
  """Returns (state, population, seed, secret root) -> (state, metrics) of one round.

  Metrics are scalars named 'layer/metric', or 'select/metric' for all select sides. A round adds
  its own: `selected` (clients in the cohort), `ids` (theirs, [C]; -1: padding), `clients` (those
  whose messages are in the sum), `examples` (of these), `not_finite` ([C], ids of clients left out
  because their update was not finite, else -1) and `finite` (whether the new parameters are).

  Under a claim of privacy such clients are neither left out nor named, since both would show: zeros
  stand for their updates, and `zeroed` counts them.
  """

  def round(
    state: State, population: Population, seed: jax.Array, root: jax.Array
  ) -> tuple[State, Metrics]:
    cast = broadcast(
      seed, state.round, state.params, root=root, servers=state.servers, population=population
    ).deriving(setting.layers)
    cast, metrics = select(setting, cast, state.clients)
    row = everywhere(functools.partial(_rows, setting), setting.layout.mesh)(
      population.start, population.count, cast.cohort
    )
    cast = cast._replace(cohort=row.client)
    state, noted, _ = settle(
      setting, cast, row, state, _messages(setting, cast, row, state.clients)
    )
    if setting.apart:
      noted['moved'] = places.moved(row, setting.shape.num_clients, setting.layout.devices)
    return state, {**metrics, **noted}

  return round


def _rows(setting: Setting, start: jax.Array, count: jax.Array, cohort: Member) -> Row:
  """Returns the rows [C] of a cohort in the order in which its clients run."""
  return places.arranged(setting, cohorts.rows(Population({}, start, start, count), cohort))


def settle(
  setting: Setting, cast: Cast, row: Row, state: State, ran: Ran
) -> tuple[State, Metrics, jax.Array]:
  """Ends a round: the server's sides, and the new states of clients.

  Args:
    setting: of the run.
    cast: of the round, with its cohort.
    row: the rows of the cohort [C].
    state: before the round.
    ran: what the clients' sides have made.

  Returns:
    The state after the round; its metrics, but for those of the draw; and whether the new states of
    each client count [C].
  """
  message, new, ok, sound, metrics = ran
  bad = cast.cohort.arrived & ~ok
  claims = setting.layers.claims
  if claims:
    metrics['zeroed'] = bad.sum(dtype=jnp.int32)
  not_finite = jnp.where(bad & (not claims), cast.cohort.id, -1)
  cast = left_out(setting, cast, ok)
  mesh = setting.layout.mesh
  params, servers, noted, released = walk.server_pass(
    *(setting.layers, cast.bare(), setting.specs, message),
    whole=None if setting.shards is None else functools.partial(everywhere, mesh=mesh),
  )
  metrics |= noted
  arrived = cast.cohort.arrived
  kept = arrived & ok & sound & released  # what must hold for a client's new states to count
  clients = new
  if not setting.divided:  # else the rows were written as soon as each client had run
    ids = cast.cohort.id
    clients = cohorts.commit(state.clients, ids, kept, new, mesh, setting.late)
  metrics |= {
    'selected': cast.cohort.real.sum(dtype=jnp.int32),
    'clients': arrived.sum(dtype=jnp.int32),
    'examples': jnp.where(arrived, row.count, 0).sum(dtype=jnp.int32),
    'ids': jnp.where(cast.cohort.real, cast.cohort.id, -1),
    'not_finite': not_finite,
    'finite': Covered((tree.divided_finite if setting.shards else tree.finite)(params)),
  }
  made = State(state.round + 1, params, clients, servers)
  if setting.shards is not None:
    where = tables.shardings(setting.split, mesh, setting.shards)
    made = jax.lax.with_sharding_constraint(made, where)
  return made, metrics, kept


def select(setting: Setting, cast: Cast, clients: dict[str, Tree]) -> tuple[Cast, Metrics]:
  """Returns the cast of this round, with the padded cohort, and the metrics of its draw."""
  table = lambda name: whole(clients[name], setting.layout.mesh)
  cast, _, metrics = walk.select_pass(setting.layers, cast, table)
  cohort = cohorts.pad(cast.cohort, setting.capacity, setting.shape.num_clients)
  return cast._replace(cohort=cohort), metrics


def _messages(setting: Setting, cast: Cast, row: Row, states: dict[str, Tree]) -> Ran:
  """Returns what `collect` does, computed from all examples at once where the round is pooled.

  If the pooled sum is not finite, the clients run one by one instead: only then is it known which
  of them has to be left out.
  """

  def each() -> Ran:
    return collect(setting, cast, row, states)

  if setting.pool is None:
    return each()
  message, metrics = pooled.run(setting.pool, setting, cast, row)
  everyone = jnp.ones(setting.capacity, bool)
  old = cohorts.gather(states, cast.cohort.id)
  pooled_ones = lambda: (message, old, everyone, everyone, metrics)
  ran: Ran = jax.lax.cond(tree.finite(message), pooled_ones, each)
  return ran


def collect(
  setting: Setting,
  cast: Cast,
  row: Row,
  states: dict[str, Tree],
  run: Callable[..., Mapped] | None = None,
) -> Ran:
  """Runs all client and cohort sides.

  Args:
    setting: of the run.
    cast: of the round, with its cohort.
    row: the rows of the cohort [C].
    states: client states, [N, ...] each.
    run: runs successive client sides over the cohort; None: `mapped`.

  Returns:
    The sum of messages, new client states [C, ...] (the tables with them, if divided), whether each
    client's message is finite [C], whether its new states are [C], and metrics.
  """
  run = functools.partial(mapped, setting) if run is None else run
  value: Any = None
  # The tables of all other layers stay as they are.
  new: dict[str, Tree] = {x.name: states[x.name] for x in setting.layers if not _has_rows(x)}
  metrics: Metrics = {}
  ok = sound = jnp.ones(setting.capacity, bool)
  cut = walk.segments(setting.layers)
  for number, (side, group) in enumerate(cut):
    last = number == len(cut) - 1
    if side == 'cohort':
      cast = left_out(setting, cast, ok)
      mesh = setting.layout.mesh
      if cut[number - 1][0] == 'client' and rules.divided_side(group[0], mesh) is group[0].cohort:
        value = gathered(value, ok, mesh)
      value, rows, noted = _cohort(setting, group[0], cast, value, states, new, ok)
      new |= rows
      metrics |= noted
      sound &= tree.finite(rows, 1)
      if last or cut[number + 1][0] == 'cohort':
        # Checked between cohort sides too, so that a client whose attack sends NaN is named before
        # a robust rule leaves its message out.
        fine = tree.finite(value, 1)
        ok &= fine
        value = hiding.kept(setting.layers, fine, value) if setting.layers.claims else value
      if last:
        value = _total(setting, left_out(setting, cast, ok).cohort.arrived, value)
      continue
    own = {x.name: states[x.name] for x in group}
    value, own, noted, fine, kept = run(cast, group, row, value, own, number == 0, last)
    sound &= kept
    new |= own
    ok &= fine
    metrics |= everywhere(over_cohort, setting.layout.mesh)(noted, cast.cohort.arrived & ok)
  return value, new, ok, sound, metrics


def mapped(
  setting: Setting,
  cast: Cast,
  group: tuple[Layer, ...],
  row: Row,
  value: Any,
  own: dict[str, Tree],
  first: bool,
  last: bool,
) -> Mapped:
  """Runs successive client sides over the cohort; `first` and `last` are as in `chain`."""
  held, shown = (own, ()) if setting.split else ((), own)
  # Client sides are not shown which clients arrive: that may depend on other clients' data.
  cast = cast._replace(cohort=cast.cohort._replace(arrived=cast.cohort.real))
  cast = cast if first else cast.bare()
  whole = PartitionSpec()
  value, held, (made, (noted, fine, kept)) = spread(
    _step(setting, group, first, last),
    (cast, shown, row),
    held,
    (row, value, jnp.arange(setting.capacity, dtype=jnp.int32)),
    chunk=None if setting.layout.looped else setting.layout.chunk,
    mesh=setting.layout.mesh,
    summed=setting.adding if last else None,
    specs=(apart.specs(cast), whole, whole) if setting.apart and first else None,
  )
  value = value.open() if last else value
  return value, held if setting.divided else made, noted, fine, kept


def _has_rows(layer: Layer) -> bool:
  """Returns whether a layer has a side that may change its client states."""
  return layer.client is not None or layer.cohort is not None


def _cohort(
  setting: Setting,
  layer: Layer,
  cast: Cast,
  value: Any,
  states: dict[str, Tree],
  new: dict[str, Tree],
  ok: jax.Array,
) -> tuple[Any, dict[str, Tree], Metrics]:
  """Returns (stack, {layer's name: rows [C, ...]}, metrics) of one cohort side."""
  # In one layer the client side runs first: the cohort side goes on from the rows that it left.
  old = new[layer.name] if layer.client is not None else None
  if old is None:
    ids = across.after(cast.cohort.id, ok)  # sent after what client sides have sent
    old = tables.rows_of(states[layer.name], ids, setting.layout.mesh, setting.late)
  mesh = setting.layout.mesh
  stage = rules.divided_side(layer, mesh)

  def side(cast: Cast, value: Any, old: Tree) -> tuple[Any, Tree, Metrics]:
    return walk.cohort_pass(setting.layers, layer, stage, cast, setting.specs, value, old)

  if stage is layer.cohort:
    side = everywhere(side, mesh)
  value, rows, metrics = side(cast.bare(), value, old)
  return value, {layer.name: rows}, metrics


def _total(setting: Setting, on: jax.Array, stack: Any) -> Any:
  """Returns the sum of those of the messages [C, ...] that are `on` [C]."""

  def total(on: jax.Array, stack: Any) -> Any:
    return setting.adding.done(setting.adding.stacked(tree.keep(on, stack)))

  return everywhere(total, setting.layout.mesh)(on, stack)


def left_out(setting: Setting, cast: Cast, ok: jax.Array) -> Cast:
  """Returns the cast in which clients that are not `ok` [C] count as dropped out.

  Layers that see the cohort treat both cases alike: the masks of either are recovered. Under a
  claim of privacy zeros stand for the messages of these clients, and nobody is left out.
  """
  if setting.layers.claims:
    return cast
  cohort = cast.cohort
  return cast._replace(cohort=cohort._replace(arrived=cohort.arrived & ok))


def _step(setting: Setting, group: tuple[Layer, ...], first: bool, last: bool) -> Step:
  """Returns the step that runs these client sides for a chunk of clients, with their states."""
  layout, population = setting.layout, setting.shape.num_clients
  rows_of = setting.shards and {x.name: setting.shards.clients[x.name] for x in group}
  one = chain(setting, group, first, last)
  block = side_by_side(_packing(one) if last else one, lambda packed: packed[0].count, layout)
  if last and not layout.looped:
    block = summing(block, setting.adding)

  # States are gathered here, chunk by chunk, so that memory holds those of one chunk and not those
  # of the whole cohort.
  def step(everyone: Everyone, held: Tree, packed: Packed) -> tuple[Tree, Tree, Tree]:
    (cast, given, whole), (row, value, slot) = everyone, packed
    ids = cast.cohort.id
    if first and setting.apart:
      cast, row = apart.gathered(setting, layout, cast, row, whole, slot)
      ids = across.after(cast.cohort.id, cast.arrays)  # states are sent after examples
    if not setting.split:
      old = cohorts.gather(given, row.client.id)
      value, rest = block(cast, (row, value, old))
      return value, held, rest
    turn = tables.turn(ids, slot, population, layout)
    old = tables.read(held, turn)
    value, rest = block(cast, (row, value, old))
    if setting.late:
      return value, held, rest
    new, (metrics, ok, sound) = rest
    held = tables.write(held, turn, row.client.arrived & ok & sound, new)
    held = shards.kept(held, rows_of, layout.mesh)
    return value, held, ({}, (metrics, ok, sound))

  return step


def _packing(one: OneClient) -> OneClient:
  """Returns `one` with its value packed: it is summed as few vectors, not leaf by leaf."""

  def packed(everyone: Tree, longest: jax.Array, row: Tree) -> tuple[Tree, Tree]:
    value, rest = one(everyone, longest, row)
    return packing.Packed.of(value), rest

  return packed


def chain(setting: Setting, group: tuple[Layer, ...], first: bool, last: bool) -> OneClient:
  """Returns the function that runs these client sides for one client.

  Args:
    setting: of the run.
    group: the layers whose client sides run.
    first: whether they are the first, so that the client's `Task` is made here.
    last: whether they are the last, so that a message that is not finite, or did not arrive,
      becomes zeros, which add nothing to the sum.
  """
  # Groups that share a model go in step, so that even a client that runs alone may skip steps.
  alone = setting.layout.looped and setting.shards is None
  ragged = not (alone or setting.shape.equal)

  def ended(row: Row, value: Any, new: Tree, ok: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
    if last:
      fine = tree.finite(value)
      ok &= fine
      stays = row.client.arrived & ok
      if setting.layers.claims:  # an update that was not finite when it was made has been replaced
        stays, value = row.client.arrived, hiding.kept(setting.layers, fine, value)
      value = tree.keep(stays, value)
    else:
      value = tree.keep(row.client.real, value)
    return value, ok, tree.finite(new)

  def one(cast: Cast, longest: jax.Array, packed: Packed) -> tuple[Tree, Tree]:
    row, value, old = packed
    if first:
      data = examples(cast, row, longest, setting.shape, ragged, setting.transforms)
      value = Task(cast.params, data)
    value, new, metrics, ok = shards.client_pass(setting, group, cast, row.client, value, old)
    value, ok, sound = undivided(ended)(row, value, new, ok)
    return value, (new, (metrics, ok, sound))

  return one
