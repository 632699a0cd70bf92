"""The plan of a run: shapes, checks that the layers fit together, and the memory of client states.

The checks run before the first round, on shapes alone (`jax.eval_shape`): they compute nothing.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import (
  Layer,
  Member,
  Message,
  Metrics,
  Population,
  Round,
  Shape,
  State,
  Task,
  Transform,
  Tree,
  scalar_member,
  shapes,
  tree,
)
from fedjax_mem.engine import checks, pooled, shards, tables, walk
from fedjax_mem.engine.cast import Row, broadcast, context, examples
from fedjax_mem.engine.clients import Layout, everywhere
from fedjax_mem.engine.cohort import pad
from fedjax_mem.engine.mesh import replicated, whole
from fedjax_mem.engine.metrics import covered
from fedjax_mem.engine.round import make_round
from fedjax_mem.engine.setting import Rooms, Setting

# (seed, secret root) where only shapes are wanted.
_KEYS: Any = (np.uint32(0), np.zeros(2, np.uint32))


def make_setting(
  layers: Round,
  params: Tree,
  population: Population,
  shape: Shape,
  layout: Layout,
  transforms: tuple[Transform, ...] = (),
  pool: bool = True,
  apart: bool | Rooms = False,
) -> Setting:
  """Returns the setting of a run, checked.

  Args:
    layers: of the round.
    params: the initial parameters (arrays or shapes).
    population: all examples (arrays or shapes).
    shape: static facts about the population.
    layout: how the cohort is laid out.
    transforms: functions batch -> batch, applied to every batch that is gathered.
    pool: whether to look for a way to sum over all examples of the cohort at once.
    apart: whether each device has only the examples of its own clients, or the room for them.

  Raises:
    IncompatibleStages: layers that do not fit together.
    ValueError: a sampler for another population, or a state that does not keep its shapes.
  """
  checks.composed(layers)
  draws = layers.draws
  if draws.population != shape.num_clients:
    raise ValueError(
      f'the sampler must be for the {shape.num_clients} clients of the data, '
      f'got one for {draws.population}.'
    )
  capacity = layout.places(draws.capacity)
  rooms = None
  if apart and layout.devices > 1:
    rooms = apart if isinstance(apart, Rooms) else Rooms.of(population.count)
  setting = Setting(layers, shape, capacity, layout, {}, transforms, apart=rooms)
  specs, sent = _specs(setting, params, population)
  setting = setting._replace(specs=specs)
  init = lambda p, d: initial_state(setting, p, d, *_KEYS)
  before = jax.eval_shape(init, params, population)
  if layout.specs is not None:
    setting = setting._replace(shards=shards.of_state(layout.specs, params, before))
  checks.planned(layers, specs, sent, before)
  if pool:
    setting = setting._replace(pool=pooled.find(layers, setting, params, population))
  rows = bool(jax.tree.leaves(before.clients)) and setting.pool is None
  even = rows and shape.num_clients % layout.devices == 0
  divided = even and tables.written_at_once(layers)
  late = even and not divided and layout.devices > 1
  setting = setting._replace(divided=divided, late=late)
  setting = setting._replace(round=jax.jit(make_round(setting)))
  noted = _check_fixed_point(setting, params, population)
  return setting._replace(metrics=frozenset(noted), covered=covered(noted))


def initial_state(
  setting: Setting, params: Tree, population: Population, seed: jax.Array, root: jax.Array
) -> State:
  """Returns the state before the first round: client tables [N, ...] and server values."""
  ids = jnp.arange(setting.shape.num_clients, dtype=jnp.int32)
  cohort = pad(_rows(scalar_member(0)), setting.capacity, setting.shape.num_clients)
  cast = broadcast(seed, 0, params, root=root, cohort=cohort, population=population)
  cast = cast.deriving(setting.layers)
  first = functools.partial(context, setting.layers)

  def value(layer: Layer) -> Tree:
    made: Any = lambda cast: layer.value(first(layer, 'init', cast, setting.specs))
    if setting.shards is None or layer is setting.layers.algorithm:
      return made(cast)
    return everywhere(made, setting.layout.mesh)(cast.bare())  # noise is drawn as on one device

  cast = cast._replace(servers={x.name: value(x) for x in setting.layers})

  def row(layer: Layer, id: jax.Array) -> Tree:
    return layer.row(first(layer, 'init', cast, setting.specs, scalar_member(id)))

  clients = {x.name: jax.vmap(functools.partial(row, x))(ids) for x in setting.layers}
  return tree.copy(State(jnp.int32(0), params, clients, cast.servers))


def _specs(
  setting: Setting, params: Tree, population: Population
) -> tuple[dict[str, Tree], Message]:
  """Returns the shapes of what client sides receive, and of what leaves the last of them.

  The first is a dict by layer, of the layers after the algorithm: those that receive a `Message`.
  """
  specs: dict[str, Tree] = {}
  given = jax.eval_shape(lambda *all: all, params, population, np.int32(0))
  sent = jax.eval_shape(functools.partial(_walk, setting, specs), *_there(setting, given))
  return {name: x for name, x in specs.items() if isinstance(x, Message)}, sent


def _there(setting: Setting, shapes: Tree) -> Tree:
  """Returns shapes with the shardings of the program of many rounds, which reuses their traces."""
  where = replicated(setting.layout.mesh)
  there = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where, weak_type=x.weak_type)
  return jax.tree.map(there, shapes)


def _rows(member: Member) -> Member:
  row: Member = jax.tree.map(lambda x: x[None], member)
  return row


def _walk(
  setting: Setting,
  specs: dict[str, Tree],
  params: Tree,
  population: Population,
  round: jax.Array,
) -> Any:
  """Returns what client 0 sends after all its sides; `specs` is filled with what each receives."""
  cohort = pad(_rows(scalar_member(0)), setting.capacity, setting.shape.num_clients)
  seed, root = _KEYS
  cast = broadcast(seed, round, params, root=root, cohort=cohort, population=population)
  first = functools.partial(context, setting.layers)
  row = Row(scalar_member(0), population.start[0], population.count[0])
  data = examples(cast, row, row.count, setting.shape, True, setting.transforms)
  value: Any = Task(params, data)
  for layer in setting.layers:
    specs[layer.name] = tree.shapes(value)
    cast.servers[layer.name] = layer.value(first(layer, 'init', cast, specs))
    own = layer.row(first(layer, 'init', cast, specs, row.client))
    if layer.client is not None:
      side = functools.partial(walk.client_pass, setting.layers, (layer,), cast, specs, row.client)
      run = everywhere(lambda *given, side=side: side(*given)[:2], setting.layout.mesh)
      value, rows = run(value, {layer.name: own})
      own = rows[layer.name]
    if layer.cohort is not None:
      stack = lambda x: jnp.broadcast_to(x, (setting.capacity, *jnp.shape(x)))
      many, rows = jax.tree.map(stack, (value, own))
      many = walk.cohort_pass(setting.layers, layer, layer.cohort, cast, specs, many, rows)[0]
      value = jax.tree.map(lambda x: x[0], many)
  return value


def _check_fixed_point(setting: Setting, params: Tree, population: Population) -> Metrics:
  """Returns the shapes of a round's metrics.

  Raises:
    ValueError: a state does not keep its structure, shapes and dtypes in a round.
  """
  seed, root = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in _KEYS)
  before = jax.eval_shape(functools.partial(initial_state, setting), params, population, seed, root)
  placed = _there(setting, (before, jax.eval_shape(lambda d: d, population)))
  after, noted = jax.eval_shape(setting.round, *placed, seed, root)
  for layer in setting.layers:
    for side in ('client', 'server'):
      old, new = (getattr(s, f'{side}s')[layer.name] for s in (before, after))
      shapes.check_state(layer.name, side, new, old)
      weak = [x for x in jax.tree.leaves(new) if getattr(x, 'weak_type', False)]
      if weak:
        raise ValueError(
          f'the {side} state of {layer.name!r} must keep its structure, shapes and dtypes: it is '
          f'weakly typed after a round ({weak[0].dtype}): give the dtype, such as jnp.float32(0).'
        )
  metrics: Metrics = noted
  return metrics


def table_bytes(setting: Setting, params: Tree, population: Population) -> dict[str, int]:
  """Returns the bytes of each layer's table of client states [N, ...], without allocating it."""
  state = jax.eval_shape(lambda p, d: initial_state(setting, p, d, *_KEYS), params, population)
  return {name: tree.nbytes(x) for name, x in state.clients.items()}


def peek(
  setting: Setting, state: State, seed: jax.Array, root: jax.Array, rounds: int
) -> jax.Array:
  """Returns the ids [rounds, C] that the next rounds will draw, without running these rounds.

  Clients that select sides leave out after the draw are among them.
  """
  number = setting.shape.num_clients
  table = lambda name: whole(state.clients[name], setting.layout.mesh)

  def draw(servers: Tree, round: jax.Array) -> tuple[Tree, jax.Array]:
    cast = broadcast(seed, round, state.params, root=root, servers=servers)
    cast = cast.deriving(setting.layers)
    cast, drawn, _ = walk.select_pass(setting.layers, cast, table)
    return cast.servers, pad(drawn, setting.capacity, number).id

  ahead = state.round + jnp.arange(rounds, dtype=jnp.int32)
  names = [x.name for x in setting.layers.selecting]
  return jax.lax.scan(draw, {name: state.servers[name] for name in names}, ahead)[1]
