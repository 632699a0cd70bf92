"""What is settled before a round is traced: shapes, what fits together, what it costs in memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  IncompatibleStages,
  Layer,
  Member,
  Message,
  Population,
  Shape,
  State,
  Task,
  scalar_member,
  selector,
  tree,
)
from fedjax_mem.engine import guarantees, pooled, rules, stacks, tables
from fedjax_mem.engine.clients import Layout
from fedjax_mem.engine.cohort import pad
from fedjax_mem.engine.context import Broadcast, Row, context, examples
from fedjax_mem.engine.mesh import replicated
from fedjax_mem.engine.round import Setting, make_round

Tree = Any


def make_setting(
  layers: tuple[Layer, ...],
  params: Tree,
  population: Population,
  shape: Shape,
  layout: Layout,
  transforms: tuple[Callable[[dict], dict], ...] = (),
  pool: bool = True,
) -> Setting:
  """Returns the setting of a run, checked.

  Args:
    layers: the onion.
    params: the initial parameters (arrays or shapes).
    population: all examples (arrays or shapes).
    shape: static facts about the population.
    layout: how the cohort is laid out.
    transforms: functions batch -> batch, applied to what is gathered.
    pool: whether to look for a way to sum over all examples of the cohort at once.

  Raises:
    IncompatibleStages: layers that do not fit together.
    ValueError: a sampler for another population, or a state that does not keep its shapes.
  """
  _check_order(layers)
  stacks.check(layers)
  rules.check(layers)
  layers = guarantees.bind(layers)
  sampling = selector(layers)[1].sampling
  if sampling.population != shape.num_clients:
    raise ValueError(
      f'the sampler must be for the {shape.num_clients} clients of the data, '
      f'got one for {sampling.population}.'
    )
  capacity = sampling.capacity + -sampling.capacity % layout.block
  setting = Setting(layers, shape, capacity, layout, {}, transforms)
  like, sent = _like(setting, params, population)
  setting = setting._replace(like=like)
  if any(x.traits.mechanism is not None for x in layers):
    init = lambda p, d: initial_state(setting, p, d, jnp.uint32(0)).servers
    guarantees.check_released(layers, like, sent, jax.eval_shape(init, params, population))
  if pool:
    setting = setting._replace(pool=pooled.find(layers, setting, params, population))
  divided = setting.pool is None and tables.divides(layers, shape.num_clients, layout.devices)
  setting = setting._replace(divided=divided)
  setting = setting._replace(round=jax.jit(make_round(setting)))
  _check_fixed_point(setting, params, population)
  return setting


def _check_order(layers: tuple[Layer, ...]) -> None:
  """Raises `IncompatibleStages` for an order of layers that is not a round."""
  place = next(i for i, x in enumerate(layers) if x.traits.kind == 'algorithm')
  for i, layer in enumerate(layers):
    if i < place and (layer.traits.kind == 'message' or layer.stacked):
      raise IncompatibleStages(
        f'{layer.name!r} works on messages: it must come after the algorithm '
        f'{layers[place].name!r}.'
      )
    if i > place and layer.traits.kind == 'task':
      raise IncompatibleStages(
        f'{layer.name!r} works on tasks: it must come before the algorithm {layers[place].name!r}.'
      )
  weighing = [x.name for x in layers if x.traits.weighs is not None]
  if len(weighing) != 1:
    raise IncompatibleStages(
      f'exactly one layer must weigh the clients, such as by_examples(), got {weighing!r}.'
    )
  _check_feedback(layers, weighing[0])


def _check_feedback(layers: tuple[Layer, ...], weighing: str) -> None:
  """Raises `IncompatibleStages` where a layer that selects cannot see what it selects by."""
  names = [x.name for x in layers]
  chooser = next(x for x in layers if x.select is not None)
  if chooser.traits.kind == 'message' and names.index(chooser.name) < names.index(weighing):
    raise IncompatibleStages(
      f'{chooser.name!r} selects by weighted messages: it must come after {weighing!r}.'
    )
  hidden = [x.name for x in layers if x.traits.payload == 'integer' or x.traits.masks]
  if chooser.stacked and hidden:
    raise IncompatibleStages(
      f"{chooser.name!r} selects by each client's own update, and {hidden[0]!r} leaves integers "
      'that are seen only as a sum: select by another rule, such as uniform, or remove '
      f'{hidden[0]!r}.'
    )


def initial_state(setting: Setting, params: Tree, population: Population, seed: jax.Array) -> State:
  """Returns the state before the first round: client tables [N, ...] and server values."""
  ids = jnp.arange(setting.shape.num_clients, dtype=jnp.int32)
  cohort = pad(_rows(scalar_member(0)), setting.capacity, setting.shape.num_clients)
  cast = Broadcast(seed, jnp.int32(0), params, cohort, {}, population.arrays, population.index)
  servers = {x.name: x.server.init(context(x, 'init', cast, setting.like)) for x in setting.layers}
  cast = cast._replace(servers=servers)
  clients = {}
  for layer in setting.layers:
    init = lambda id, layer=layer: layer.client.init(
      context(layer, 'init', cast, setting.like, scalar_member(id))
    )
    clients[layer.name] = jax.vmap(init)(ids)
  state = State(jnp.int32(0), params, clients, cast.servers)
  return tree.copy(state)


def _like(
  setting: Setting, params: Tree, population: Population
) -> tuple[dict[str, Tree], Message]:
  """Returns, for each layer after the algorithm, the shapes of what its client half receives, and
  the shapes of what leaves the last one.
  """
  like: dict[str, Tree] = {}
  sent = jax.eval_shape(lambda p, d: _walk(setting, p, d, jnp.uint32(0), like), params, population)
  return {name: x for name, x in like.items() if isinstance(x, Message)}, sent


def _rows(member: Member) -> Member:
  return jax.tree.map(lambda x: x[None], member)


def _walk(
  setting: Setting, params: Tree, population: Population, seed: jax.Array, like: dict[str, Tree]
) -> Any:
  """Sends one client through all client halves, noting in `like` what each of them receives."""
  cohort = pad(_rows(scalar_member(0)), setting.capacity, setting.shape.num_clients)
  servers: dict[str, Tree] = {}
  cast = Broadcast(seed, jnp.int32(0), params, cohort, servers, population.arrays, population.index)
  row = Row(scalar_member(0), population.start[0], population.count[0])
  value: Any = Task(params, examples(cast, row, row.count, setting.shape, True, setting.transforms))
  for layer in setting.layers:
    like[layer.name] = tree.shapes(value)
    wanted = Message if layer.traits.kind in ('algorithm', 'message') else type(value)
    servers[layer.name] = layer.server.init(context(layer, 'init', cast, like))
    own = layer.client.init(context(layer, 'init', cast, like, row.me))
    if layer.stacked:
      stack = lambda t: jax.tree.map(
        lambda x: jnp.broadcast_to(x, (setting.capacity, *jnp.shape(x))), t
      )
      ctx = context(layer, 'cohort', cast, like, cohort)
      value = jax.tree.map(lambda x: x[0], layer.client.apply(ctx, stack(value), stack(own))[0])
    else:
      ctx = context(layer, 'client', cast, like, row.me)
      value = layer.client.apply(ctx, value, own)[0]
    if not isinstance(value, wanted):
      raise IncompatibleStages(
        f'the client half of {layer.name!r} must return a {wanted.__name__}, '
        f'got {type(value).__name__}.'
      )
  return value


def _check_fixed_point(setting: Setting, params: Tree, population: Population) -> None:
  """Raises `ValueError` if a state does not keep its structure, shapes and dtypes in a round."""
  seed = jax.ShapeDtypeStruct((), jnp.uint32)
  init = lambda p, d, s: initial_state(setting, p, d, s)
  before = jax.eval_shape(init, params, population, seed)
  # On the mesh, as the program of many rounds has them: its trace of a round is then this one.
  where = replicated(setting.layout.mesh)
  there = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where, weak_type=x.weak_type)
  placed = jax.tree.map(there, (before, jax.eval_shape(lambda d: d, population)))
  after = jax.eval_shape(setting.round, *placed, seed)[0]
  describe = lambda t: jax.tree.map(
    lambda x: (x.shape, str(x.dtype), bool(getattr(x, 'weak_type', False))), t
  )
  for layer in setting.layers:
    for side in ('client', 'server'):
      old, new = (describe(getattr(s, f'{side}s')[layer.name]) for s in (before, after))
      if jax.tree.flatten(old) != jax.tree.flatten(new):
        raise ValueError(
          f'the {side} state of {layer.name!r} must keep its structure, shapes and dtypes '
          f'(strongly typed), {old!r}, got {new!r}.'
        )


def table_bytes(setting: Setting, params: Tree, population: Population) -> dict[str, int]:
  """Returns the bytes of each layer's table of client states [N, ...], without making them."""
  state = jax.eval_shape(
    lambda p, d: initial_state(setting, p, d, jnp.uint32(0)), params, population
  )
  return {name: tree.nbytes(x) for name, x in state.clients.items()}


def peek(setting: Setting, state: State, seed: jax.Array, rounds: int) -> jax.Array:
  """Returns the ids [rounds, C] that the next rounds will draw, without running them."""
  name, sampler = selector(setting.layers)
  layer = next(x for x in setting.layers if x.name == name)
  number = setting.shape.num_clients
  table = tables.whole(state.clients[name], setting.layout.mesh)

  def draw(own: Tree, round: jax.Array) -> tuple[Tree, jax.Array]:
    cast = Broadcast(seed, round, state.params, None, {name: own}, {}, jnp.zeros(0))
    ctx = context(layer, 'select', cast, {})
    cohort, own, _ = sampler.apply(ctx, table, own)
    return own, pad(cohort, setting.capacity, number).id

  ahead = state.round + jnp.arange(rounds, dtype=jnp.int32)
  return jax.lax.scan(draw, state.servers[name], ahead)[1]
