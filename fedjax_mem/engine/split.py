"""A round in parts, for parties that are apart: the draw, one client, and the rest on the server.

`round.py` runs the same functions in one program. Here each part is a function of its own, for
clients that train in processes of their own and whose messages come over a network:

    drawn (server) > one_client (each client) > the messages that came > settled (server)

A client keeps its own states; the server has the tables of layers that have no client side.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  IncompatibleStages,
  Layer,
  Member,
  Message,
  Metrics,
  Personal,
  Population,
  Round,
  State,
  Tree,
  scalar_member,
  tree,
)
from fedjax_mem.engine import cohort as cohorts
from fedjax_mem.engine import hiding, places, walk
from fedjax_mem.engine import metrics as measured
from fedjax_mem.engine import round as rounds
from fedjax_mem.engine.cast import Cast, Row, broadcast, context
from fedjax_mem.engine.clients import spread
from fedjax_mem.engine.plan import initial_state
from fedjax_mem.engine.setting import Setting


class Given(NamedTuple):
  """What clients have made elsewhere, each in its own process.

  Attributes:
    message: stack [C, ...] of their messages, as they enter cohort sides or the sum; or that sum.
    fine: [C] bool, whether each is finite.
    metrics: metrics of the clients' sides, each [C].
  """

  message: Any
  fine: Any
  metrics: Metrics


class Told(NamedTuple):
  """What the server tells a client in a round.

  Attributes:
    round: int32, from 0.
    params: the server's parameters.
    servers: server states of the layers with a client side, `()` where the client reads none.
  """

  round: Any
  params: Tree
  servers: dict[str, Tree]


class Made(NamedTuple):
  """What one client has made in a round.

  Attributes:
    message: what leaves the last of its sides.
    rows: layer -> its new state.
    metrics: of its sides.
    fine: bool, whether the message is finite, and was when it left the algorithm.
    sound: bool, whether the new states are finite.
  """

  message: Message
  rows: dict[str, Tree]
  metrics: Metrics
  fine: jax.Array
  sound: jax.Array


def client_layers(layers: Round) -> tuple[Layer, ...]:
  """Returns the layers with a client side.

  Raises:
    IncompatibleStages: a client side follows a cohort side, or a layer with both keeps client
      states: then a client would have to be asked more than once in a round. Or clients keep a part
      of the parameters, without which the server has no scores.
  """
  for layer, _, _ in layers.having(Personal):
    raise IncompatibleStages(
      f'{layer.name!r} keeps statistics with each client (model.statistics), and clients in '
      'processes of their own do not show them, so that nothing could be scored: simulate it, or '
      "use 'average'."
    )
  cut = walk.segments(layers)
  later = [x.name for side, group in cut[1:] if side == 'client' for x in group]
  both = [x.name for x in layers if x.client is not None and x.cohort is not None]
  if cut[0][0] != 'client' or later or both:
    names = later or both or [cut[0][1][0].name]
    raise IncompatibleStages(
      f'{names[0]!r} needs messages of all clients before a client has ended: clients in processes '
      'of their own answer once in a round; simulate it, or leave it out.'
    )
  return cut[0][1]


def drawn(
  setting: Setting, state: State, population: Population, seed: jax.Array, root: jax.Array
) -> tuple[Member, dict[str, Tree], Metrics]:
  """Returns (cohort [C], new server states, metrics) of the next draw.

  The cohort is in the order in which a simulation one client at a time sums: so the result is that
  of the simulation, whoever answers first.

  Args:
    setting: of the run, planned for one client at a time on one device.
    state: before the round.
    population: of which only the numbers of examples are used.
    seed: the run's seed.
    root: the secret root.
  """
  cast = broadcast(seed, state.round, state.params, root=root, servers=state.servers)
  cast, metrics = rounds.select(setting, cast, state.clients)
  row = cohorts.rows(population, cast.cohort)
  if not setting.shape.equal:
    row = places.arrange(row, 1, 1)
  return row.client, cast.servers, {name: measured.plain(x) for name, x in metrics.items()}


def one_client(
  setting: Setting,
  told: Told,
  arrays: dict[str, jax.Array],
  count: jax.Array,
  client: Member,
  rows: dict[str, Tree],
  seed: jax.Array,
  root: jax.Array,
) -> Made:
  """Returns what one client makes: the body of `execution = 'loop'`, for this client alone.

  Args:
    setting: of the run.
    told: what the server says.
    arrays: the client's examples, name -> [n, ...].
    count: int32, n: an argument, so that loops are compiled as in a simulation.
    client: the client, with scalars.
    rows: layer -> the client's state.
    seed: the run's seed.
    root: the client's own secret root, of the noise that it adds.
  """
  group = client_layers(setting.layers)
  index = jnp.arange(len(next(iter(arrays.values()))), dtype=jnp.int32)
  held = Population(arrays, index, jnp.zeros(1, jnp.int32), count[None])
  servers = {x.name: () for x in setting.layers} | told.servers
  cast = broadcast(seed, told.round, told.params, root=root, servers=servers, population=held)
  untold: Any = _Untold()
  cast = cast._replace(cohort=untold)
  body = rounds.chain(setting, group, first=True, last=True)
  row = Row(client, jnp.int32(0), count)
  value, (new, (metrics, fine, sound)) = body(cast, count, (row, None, rows))
  return Made(value, new, metrics, fine, sound)


def first_rows(
  setting: Setting, params: Tree, client: jax.Array, seed: jax.Array, root: jax.Array
) -> dict[str, Tree]:
  """Returns the states of one client before its first round, layer -> state.

  Args:
    setting: of the run.
    params: the initial parameters.
    client: id of the client.
    seed: the run's seed.
    root: the client's own secret root.
  """
  cast = broadcast(seed, 0, params, root=root)
  member = scalar_member(client)
  first = functools.partial(context, setting.layers)
  for x in setting.layers:
    cast.servers[x.name] = x.value(first(x, 'init', cast, setting.specs))
  rows = client_layers(setting.layers)
  return {x.name: x.row(first(x, 'init', cast, setting.specs, member)) for x in rows}


def first_state(
  setting: Setting, params: Tree, population: Population, seed: jax.Array, root: jax.Array
) -> State:
  """Returns the server's state before the first round; clients keep the rows of their layers."""
  state = initial_state(setting, params, population, seed, root)
  away: dict[str, Tree] = {x.name: () for x in client_layers(setting.layers)}
  return state._replace(clients=state.clients | away)


def settled(
  setting: Setting,
  state: State,
  cohort: Member,
  servers: dict[str, Tree],
  given: Given,
  counts: jax.Array,
  seed: jax.Array,
  root: jax.Array,
  summed: bool = False,
) -> tuple[State, Metrics, jax.Array]:
  """Ends a round: cohort sides, the sum in its order, and the server's sides.

  Args:
    setting: of the run.
    state: before the round, from `first_state` or an earlier `settled`.
    cohort: [C], of `drawn`; `arrived` is true for those whose messages came.
    servers: from `drawn`.
    given: what the clients have made; rows of others are arbitrary.
    counts: [C] int32, examples of each client; 0 where they are not known.
    seed: the run's seed.
    root: the secret root.
    summed: whether what is given is the sum already, as secure aggregation returns it.

  Returns:
    (state, metrics, [C] whether the new states of a client count). Metrics are those of
    `make_round` but for those of the draw.
  """
  cast = broadcast(seed, state.round, state.params, root=root, cohort=cohort, servers=servers)
  row = Row(cohort, jnp.zeros_like(cohort.id), counts)

  def run(
    cast: Cast, group: Any, row: Row, value: Any, own: dict[str, Tree], first: bool, last: bool
  ) -> rounds.Mapped:
    del group, row, value, first  # they ran elsewhere, with states that are there
    message, fine, metrics = given
    if not summed:
      arrived = rounds.left_out(setting, cast, fine).cohort.arrived
      message = hiding.kept(setting.layers, fine, message)
      message = _in_turn(setting, tree.keep(arrived, message)) if last else message
    return message, own, metrics, fine, jnp.ones_like(fine)

  ran = rounds.collect(setting, cast, row, state.clients, run)
  state, metrics, kept = rounds.settle(setting, cast, row, state, ran)
  return state, {name: measured.plain(x) for name, x in metrics.items()}, kept


def _in_turn(setting: Setting, stack: Any) -> Any:
  """Returns the sum of messages [C, ...], one after the other as the loop over clients adds."""
  same = lambda everyone, carry, message: (message, carry, ((), ()))
  return spread(same, (), (), stack, chunk=None, mesh=setting.layout.mesh, summed=setting.adding)[0]


class _Untold:
  """Stands for the cohort, which no client is told."""

  def __getattr__(self, name: str) -> Any:
    """Raises `IncompatibleStages`."""
    if name.startswith('__'):
      raise AttributeError(name)
    raise IncompatibleStages(
      f'a client side asks for {name!r} of the cohort: clients in processes of their own are not '
      'told who else takes part; simulate it, or leave it out.'
    )
