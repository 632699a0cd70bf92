"""The one walk through the layers of a round: who else runs a round calls these passes.

The compiled round maps `client_pass` over a cohort, the plan calls it by shapes alone, the object
API once for its one client. Nobody else knows the order of the sides, nor makes their contexts.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  Bound,
  Context,
  Draw,
  Draws,
  Examples,
  IncompatibleStages,
  Layer,
  Looks,
  Member,
  Message,
  Metrics,
  Noises,
  Population,
  Round,
  Shape,
  Stage,
  Task,
  Trains,
  Transform,
  Tree,
  Withholds,
  keys,
  scalar_member,
  tree,
)
from fedjax_mem.engine import hiding, shapes
from fedjax_mem.engine.metrics import named, scalars


class Cast(NamedTuple):
  """What every client and the server know at the start of a round.

  Attributes:
    seed: uint32 scalar, the run's seed.
    round: int32 scalar, from 0.
    params: the server's parameters.
    cohort: `Member` of arrays [C]; None while selecting.
    servers: for each layer, its server state.
    arrays: the population's examples, name -> [T, ...]; none where nobody trains.
    rows: [M] int32, rows of `arrays`.

  `broadcast` makes one.
  """

  seed: jax.Array
  round: jax.Array
  params: Tree
  cohort: Any
  servers: dict[str, Tree]
  arrays: dict[str, jax.Array]
  rows: jax.Array


def broadcast(
  seed: jax.typing.ArrayLike,
  round: jax.typing.ArrayLike,
  params: Tree,
  *,
  cohort: Member | None = None,
  servers: dict[str, Tree] | None = None,
  population: Population | None = None,
) -> Cast:
  """Returns what everyone knows at the start of a round; its servers are a copy of the dict."""
  arrays = {} if population is None else population.arrays
  rows = jnp.zeros(0, jnp.int32) if population is None else population.index
  seed, round = jnp.asarray(seed, jnp.uint32), jnp.asarray(round, jnp.int32)
  return Cast(seed, round, params, cohort, dict(servers or {}), arrays, rows)


def context(
  layer: Layer,
  role: str,
  cast: Cast,
  specs: dict[str, Tree],
  client: Member | None = None,
  table: Tree = None,
) -> Context:
  """Returns the context of one side of a layer.

  Args:
    layer: the layer.
    role: 'select', 'init', 'client', 'cohort' or 'server'.
    cast: what everyone knows.
    specs: for each layer traced so far, the shapes that its client side receives.
    client: the one client, on a client side.
    table: the layer's client states, on a select side that looks at data.
  """
  base = keys.layer_key(keys.seed_key(cast.seed), cast.round, layer.name)
  if role == 'init' and client is not None:
    role = 'client_init'
  return Context(
    key=keys.role_key(base, role, None if client is None else client.id),
    round_key=keys.role_key(base, 'round'),
    round=cast.round,
    client=client,
    cohort=cast.cohort,
    params=cast.params,
    server_state=cast.servers.get(layer.name),
    spec=specs.get(layer.name),
    table=table,
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
  """What belongs to one client of the cohort; with a leading axis [C], to the cohort.

  Attributes:
    client: the client.
    start: int32, where its part of the population's index begins.
    count: int32, its examples (0 for padding).
  """

  client: Member
  start: jax.Array
  count: jax.Array


def examples(
  cast: Cast,
  row: Row,
  longest: jax.Array,
  shape: Shape,
  ragged: bool,
  transforms: tuple[Transform, ...] = (),
) -> Examples:
  """Returns one client's view of its examples."""
  return Examples(
    cast.arrays, cast.rows, row.start, row.count, longest, shape.capacity, ragged, transforms
  )


def segments(layers: Round) -> list[tuple[str, tuple[Layer, ...]]]:
  """Returns ('client' | 'cohort', layers) in the order in which they run.

  Client sides that follow each other run together, for one client; a cohort side alone.
  """
  cut: list[tuple[str, tuple[Layer, ...]]] = []
  group: tuple[Layer, ...] = ()
  for x in layers:
    group += (x,) if x.client is not None else ()
    if x.cohort is not None:
      cut += [('client', group)] if group else []
      cut += [('cohort', (x,))]
      group = ()
  return [*cut, ('client', group)] if group else cut


def select_pass(
  layers: Round, cast: Cast, table: Callable[[str], Tree], attempt: int = 0
) -> tuple[Cast, Member, Metrics]:
  """Runs the select sides.

  Args:
    layers: of the round.
    cast: what everyone knows, without a cohort.
    table: name of a layer -> its client states [N, ...].
    attempt: of a server that draws anew where too few are there: from 1 on, another draw.

  Returns:
    What everyone knows, with the cohort and new server states; the cohort as it was drawn, before
    the layers that leave clients out of it; metrics, all named 'select/…'.
  """
  draw, number = Draw(), layers.draws.population
  drawn: Any = None
  metrics: Metrics = {}
  servers = dict(cast.servers)
  for x in layers.selecting:
    stage: Any = x.select
    looks = stage.fact(Looks)
    # Who says that it looks at nothing is shown nothing.
    seen = None if looks is not None and looks.at == 'nothing' else table(x.name)
    ctx = context(x, 'select', cast, {}, table=seen)
    if attempt:
      ctx = ctx._replace(key=jax.random.fold_in(ctx.key, attempt))
    before = draw
    draw, servers[x.name], noted = _applied(x, stage, ctx, draw, servers[x.name])
    if not isinstance(draw, Draw):
      raise IncompatibleStages(
        f'the select side of {x.name!r} must return a Draw, got {type(draw).__name__}.'
      )
    metrics |= {f'select/{name}': value for name, value in noted.items()}
    law = stage.fact(Draws)
    if law is not None:
      hiding.check_cohort(draw.cohort, law.capacity, x.name)
      drawn = draw.cohort
    elif drawn is not None:
      draw = draw._replace(cohort=hiding.narrowed(before.cohort, draw.cohort, number, x.name))
  return cast._replace(cohort=draw.cohort, servers=servers), drawn, scalars(metrics)


def client_pass(
  layers: Round,
  group: Sequence[Layer],
  cast: Cast,
  specs: dict[str, Tree],
  client: Member,
  value: Any,
  rows: dict[str, Tree],
) -> tuple[Any, dict[str, Tree], Metrics, jax.Array]:
  """Runs the client sides of some layers, a `group` in the round, for ONE client.

  Returns:
    (value, its new rows, metrics, whether its update is finite where it leaves the algorithm).
  """
  new: dict[str, Tree] = {}
  metrics: Metrics = {}
  fine = jnp.bool_(True)
  for x in group:
    stage: Any = x.client
    trains = stage.fact(Trains) is not None
    wanted = Message if trains else type(value)
    ctx = hiding.seen(layers, x, context(x, 'client', cast, specs, client))
    # Noise inside of training, or on tasks, bounds what it noises itself.
    if stage.fact(Noises) is not None and isinstance(value, Message):
      ctx = ctx._replace(bound=_bound(layers, x, 'client', cast, specs))
    value, row, noted = _applied(x, stage, ctx, value, rows[x.name])
    if not isinstance(value, wanted):
      raise IncompatibleStages(
        f'the client side of {x.name!r} must return a {wanted.__name__}, '
        f'got {type(value).__name__}.'
      )
    if isinstance(value, Message):
      shapes.check_message(x, value)
    new[x.name] = _kept(x, 'client', row, rows[x.name])
    metrics |= named(x, noted)
    if trains:
      # Before anything is encoded: a NaN would become some integer or other.
      fine = tree.finite(value)
      value = tree.keep(fine, value)
  return value, new, metrics, fine


def message_pass(layers: Round, key: jax.Array, message: Message) -> Message:
  """Runs the client sides of a part of a round on one message by itself, outside of any round.

  They have that one key, no state, and nothing of a server.
  """
  for x, side, bound in layers.bounds({}):
    if side == 'client':
      ctx = Context(key, key, jnp.int32(0), scalar_member(0), None, None, (), None, bound=bound)
      message, _, _ = _applied(x, x.sides[side], ctx, message, ())
  return message


def cohort_pass(
  layer: Layer, stage: Stage, cast: Cast, specs: dict[str, Tree], value: Message, rows: Tree
) -> tuple[Message, Tree, Metrics]:
  """Runs the cohort side of a layer, or a stage in its place, on the stack [C, ...].

  Returns:
    (stack, new rows [C, ...], metrics).
  """
  ctx = context(layer, 'cohort', cast, specs)
  clients = value.weight.shape[0]
  value, new, noted = _applied(layer, stage, ctx, value, rows)
  shapes.check_stack(layer, value, clients)
  return value, _kept(layer, 'client', new, rows), scalars(named(layer, noted))


def server_pass(
  layers: Round, cast: Cast, specs: dict[str, Tree], message: Message
) -> tuple[Tree, dict[str, Tree], Metrics, jax.Array]:
  """Runs the server sides, last first.

  Where a layer withholds the sum, parameters and states are those from before.

  Returns:
    (new parameters, server states, metrics, whether the sum was released).
  """
  value: Any = message
  servers = dict(cast.servers)
  released, metrics = _released(layers, cast)
  withholds = [x.name for x, _, _ in layers.having(Withholds)]
  for x in reversed(layers):
    if x.server is not None:
      ctx = hiding.seen(layers, x, context(x, 'server', cast, specs))
      value = hiding.weighed(layers, x, value)
      if x.server.fact(Noises) is not None:
        ctx = ctx._replace(bound=_bound(layers, x, 'server', cast, specs))
      value, servers[x.name], noted = _applied(x, x.server, ctx, value, servers[x.name])
      metrics |= scalars(named(x, noted))
    # From the algorithm on it is parameters.
    wanted = specs.get(x.name, tree.shapes(cast.params))
    unlike = shapes.unlike(value, wanted)
    if unlike:
      raise IncompatibleStages(
        f'the server side of {x.name!r} must return what its client side receives, '
        f'{wanted!r}, got {tree.shapes(value)!r}: {unlike}'
      )
    if x.name in withholds:
      # Nor do the layers that follow see it, or their metrics tell of it.
      value = tree.keep(released, value)
  if withholds:
    value, servers = tree.select(released, (value, servers), (cast.params, dict(cast.servers)))
  return value, servers, metrics, released


def _bound(layers: Round, layer: Layer, side: str, cast: Cast, specs: dict[str, Tree]) -> Bound:
  """Returns what one client can change in what a side receives, in this round."""
  known = {'servers': cast.servers, 'round': cast.round, 'params': cast.params}
  return layers.bound(layer, side, specs, **known)


def _released(layers: Round, cast: Cast) -> tuple[jax.Array, Metrics]:
  """Returns (whether enough clients arrived for the sum to be released, metrics that say so)."""
  wants = layers.having(Withholds)
  if not wants:
    return jnp.bool_(True), {}
  arrived = cast.cohort.arrived.sum(dtype=jnp.int32)
  enough = {x.name: arrived >= fact.least for x, _, fact in wants}
  metrics = {f'{name}/withheld': (~ok).astype(jnp.int32) for name, ok in enough.items()}
  return jnp.stack([*enough.values()]).all(), metrics


def _applied(layer: Layer, stage: Stage, ctx: Context, value: Any, state: Tree) -> Any:
  """Returns what a side gives; names a layer on the wrong side of the algorithm.

  Raises:
    IncompatibleStages: that, or a side that does not return three things.
  """
  try:
    given = stage.apply(ctx, value, state)
    # A `Message` alone has three fields, too.
    if type(given) is tuple and len(given) == 3 and isinstance(given[2], dict):
      return given
    got = type(given).__name__
    raise IncompatibleStages(
      f'every side of {layer.name!r} must return (value, state, metrics), metrics a dict, got '
      f'{f"a tuple of {[type(x).__name__ for x in given]!r}" if got == "tuple" else f"one {got}"}.'
    )
  except AttributeError as error:
    kind = type(error.obj)
    if kind not in (Draw, Task, Message) or type(value) is not kind:
      raise
    if kind is Draw:
      raise IncompatibleStages(
        f'the select side of {layer.name!r} asks a Draw for {error.name!r}: if it works on what '
        'clients send, name its side, Layer(name, client=...).'
      ) from error
    other, place = (Message, 'after') if kind is Task else (Task, 'before')
    raise IncompatibleStages(
      f'{layer.name!r} asks a {kind.__name__} for {error.name!r}: if it works on a '
      f'{other.__name__}, it must come {place} the algorithm.'
    ) from error


def _kept(layer: Layer, whose: str, new: Tree, old: Tree) -> Tree:
  """Returns the new state, or raises unless it keeps its structure, shapes and dtypes."""
  # Writing the rows into the table would cast them to its dtypes, silently.
  unlike = shapes.unlike(new, old)
  if unlike:
    raise ValueError(
      f'the {whose} state of {layer.name!r} must keep its structure, shapes and dtypes, '
      f'{tree.shapes(old)!r}, got {tree.shapes(new)!r}: {unlike}'
    )
  return new
