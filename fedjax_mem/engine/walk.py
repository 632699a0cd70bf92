"""The walk through the layers of a round: four passes, one for each kind of side.

    select_pass > client_pass, once for each client > cohort_pass > (the sum) > server_pass

Only this module knows in which order the sides run. Everything that runs a round calls these
passes: the compiled round maps `client_pass` over the cohort (`round.py`), the plan calls it on
shapes, without computing anything (`plan.py`), and a client object of `federated` calls it once,
for itself.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  Bound,
  Context,
  Draw,
  Draws,
  IncompatibleStages,
  Layer,
  Looks,
  Member,
  Message,
  Metrics,
  Noises,
  Round,
  Stage,
  Task,
  Trains,
  Tree,
  Withholds,
  scalar_member,
  shapes,
  tree,
)
from fedjax_mem.engine import hiding
from fedjax_mem.engine.cast import Cast, context
from fedjax_mem.engine.metrics import named, scalars

# A function of trees -> the same function, whose arguments are whole on every device.
Whole = Callable[[Callable[..., Any]], Callable[..., Any]]


def segments(layers: Round) -> list[tuple[str, tuple[Layer, ...]]]:
  """Returns ('client' | 'cohort', layers) in the order in which they run.

  Successive client sides are one segment: a client runs all of them without any other client. A
  cohort side needs the messages of all clients, so it ends a segment and is one of its own.
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
    cast: of the round, without a cohort.
    table: name of a layer -> its client states [N, ...].
    attempt: 0; from 1 on, the number of another draw, for a server that draws again where too few
      of the selected clients are available.

  Returns:
    The cast with the cohort and the new server states; the cohort as it was drawn, before the
    layers that leave clients out of it; metrics, all named 'select/…'.
  """
  draw, number = Draw(), layers.draws.population
  drawn: Any = None
  metrics: Metrics = {}
  servers = dict(cast.servers)
  for x in layers.selecting:
    stage: Any = x.select
    looks = stage.fact(Looks)
    # A side that states that it looks at nothing gets no table: so its statement cannot be false.
    seen = None if looks is not None and looks.at == 'nothing' else table(x.name)
    ctx = context(layers, x, 'select', cast, {}, table=seen)
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
    elif drawn is not None:  # after the draw, a side can only leave clients out
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
  """Runs the client sides of some layers for ONE client.

  Args:
    layers: of the round.
    group: the layers among them whose client sides run now.
    cast: of the round.
    specs: for each layer, the shapes that its client side receives.
    client: the client.
    value: what enters the first of these sides, a `Task` or a `Message`.
    rows: for each layer of the group, the client's state.

  Returns:
    (value, new rows, metrics, whether the update was finite when it left the algorithm). One that
    is not, and under a claim one of weight 0, has been replaced (`hiding.kept`).
  """
  new: dict[str, Tree] = {}
  metrics: Metrics = {}
  fine = jnp.bool_(True)
  for x in group:
    stage: Any = x.client
    trains = stage.fact(Trains) is not None
    wanted = Message if trains else type(value)
    ctx = hiding.seen(layers, x, context(layers, x, 'client', cast, specs, client))
    # Noise on messages is scaled to the bound composed so far. Noise inside of training, or on
    # tasks, clips what it works on itself.
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
      # Checked before anything is encoded: rounded to integers, a NaN could not be recognised.
      fine = tree.finite(value)
      value = hiding.trained(layers, stage.fact(Noises) is not None, fine, value)
  return value, new, metrics, fine


def message_pass(layers: Round, key: jax.Array, message: Message) -> Message:
  """Returns what the client sides of a part of a round make of one message, outside of a round.

  Every side gets the same `key` as its key and its round's key, an empty state and no parameters.
  """
  for x, side, bound in layers.bounds({}):
    if side == 'client':
      ctx = Context(key, key, jnp.int32(0), scalar_member(0), None, None, (), None, bound=bound)
      message, _, _ = _applied(x, x.sides[side], ctx, message, ())
  return message


def cohort_pass(
  layers: Round,
  layer: Layer,
  stage: Stage,
  cast: Cast,
  specs: dict[str, Tree],
  value: Message,
  rows: Tree,
) -> tuple[Message, Tree, Metrics]:
  """Runs the cohort side of a layer on the stack of messages [C, ...].

  Args:
    layers: of the round.
    layer: with a cohort side.
    stage: that side, or one that computes the same in another way.
    cast: of the round.
    specs: for each layer, the shapes that its client side receives.
    value: stack of messages [C, ...].
    rows: client states [C, ...] of the layer.

  Returns:
    (stack, new rows [C, ...], metrics).
  """
  ctx = context(layers, layer, 'cohort', cast, specs)
  clients = value.weight.shape[0]
  value, new, noted = _applied(layer, stage, ctx, value, rows)
  shapes.check_stack(layer, value, clients)
  return value, _kept(layer, 'client', new, rows), scalars(named(layer, noted))


def parts(group: Sequence[Layer]) -> list[tuple[bool, tuple[Layer, ...]]]:
  """Returns (whether it is the algorithm, layers) of successive layers, cut at the algorithm."""
  at = [i for i, x in enumerate(group) if x.fact(Trains) is not None]
  ends = sorted({0, *at, *(i + 1 for i in at), len(group)})
  cut = [(a in at, tuple(group[a:b])) for a, b in itertools.pairwise(ends)]
  return [(trains, part) for trains, part in cut if part]


def server_pass(
  layers: Round, cast: Cast, specs: dict[str, Tree], message: Message, whole: Whole | None = None
) -> tuple[Tree, dict[str, Tree], Metrics, jax.Array]:
  """Runs the server sides on the sum of the messages, from the last layer to the first.

  Where a layer withholds the sum (`Withholds`), parameters and states are those of `cast`.

  Args:
    layers: of the round.
    cast: of the round.
    specs: for each layer, the shapes that its client side receives.
    message: the sum.
    whole: where parameters are divided over devices, what makes a function one whose arguments are
      whole: all sides but the algorithm's run in it.

  Returns:
    (new parameters, server states, metrics, whether the sum was released).
  """
  released, metrics = _released(layers, cast)
  value: Any = message
  servers = dict(cast.servers)
  for trains, group in reversed(parts(layers)) if whole else [(False, tuple(layers))]:
    side: Callable[..., Any] = functools.partial(_server_sides, layers, group, specs)
    if whole and not trains:
      side = whole(side)
    value, own, noted = side(cast, value, released)
    servers |= own
    metrics |= noted
  if layers.having(Withholds):
    value, servers = tree.select(released, (value, servers), (cast.params, dict(cast.servers)))
  return value, servers, metrics, released


def _server_sides(
  layers: Round,
  group: Sequence[Layer],
  specs: dict[str, Tree],
  cast: Cast,
  value: Any,
  released: jax.Array,
) -> tuple[Any, dict[str, Tree], Metrics]:
  """Runs the server sides of successive layers, from the last to the first."""
  servers: dict[str, Tree] = {}
  metrics: Metrics = {}
  withholds = [x.name for x, _, _ in layers.having(Withholds)]
  for x in reversed(group):
    if x.server is not None:
      ctx = hiding.seen(layers, x, context(layers, x, 'server', cast, specs))
      value = hiding.weighed(layers, x, value)
      if x.server.fact(Noises) is not None:
        ctx = ctx._replace(bound=_bound(layers, x, 'server', cast, specs))
      value, servers[x.name], noted = _applied(x, x.server, ctx, value, cast.servers[x.name])
      metrics |= scalars(named(x, noted))
    # After the algorithm in the list of layers: the message that the client side received. The
    # algorithm, and the layers listed before it: parameters.
    shapes.check_sent(x, value, specs.get(x.name, tree.shapes(cast.params)))
    if x.name in withholds:
      # Zeros from here on: the layers that follow, and their metrics, do not see the sum either.
      value = tree.keep(released, value)
  return value, servers, metrics


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
  """Returns (value, state, metrics) of a side.

  Raises:
    IncompatibleStages: the side does not return these three, or it uses a `Task` as a `Message` or
      the other way round: its layer is on the wrong side of the algorithm.
  """
  side = next((name for name, x in layer.sides.items() if x is stage), 'cohort')
  try:
    given = stage.apply(ctx, value, state)
    # By its type, since a bare `Message` is a tuple of three, too.
    if type(given) is tuple and len(given) == 3 and isinstance(given[2], dict):
      return given
    kinds = [type(x).__name__ for x in given] if type(given) is tuple else [type(given).__name__]
    raise IncompatibleStages(
      f'the {side} side of {layer.name!r} must return (value, state, metrics), metrics a dict, got '
      f'{", ".join(kinds)}.'
    )
  except Exception as error:
    if repr(layer.name) not in str(error):
      error.add_note(f'(in the {side} side of the layer {layer.name!r})')
    if not isinstance(error, AttributeError):
      raise
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
  """Returns the new state, or raises `ValueError` unless it keeps structure, shapes and dtypes."""
  # Otherwise writing the rows would cast them to the table's dtypes, silently.
  shapes.check_state(layer.name, whose, new, old)
  return new
