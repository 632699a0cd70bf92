"""The protocol of a round: what a layer is, and what crosses between its two halves.

A round is a list of layers and nothing else. Clients run the client halves left to right; what
leaves the last one is summed over the cohort; the server runs the server halves right to left. The
algorithm is the layer that turns a `Task` into a `Message` on the client, and the aggregate into
new parameters on the server.

    select > [ poison? > algorithm > attack? > weigh > clip > encode > mask ] x C
           > sum > unmask > decode > noise > divide > step

Letters in shapes: N clients in the population, C clients in a cohort (padded), D parameters,
B examples in a batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core.examples import Examples, Shape

Tree = Any
Metrics = dict[str, Any]


class Member(NamedTuple):
  """One client of a cohort; a cohort is the same tuple of arrays [C].

  Attributes:
    id: int32, position in the population; an id >= N is padding.
    real: bool, false for padding.
    arrived: bool, false for padding and for a client that drops out after its work.
    chance: float32 in (0, 1], its probability of being selected (drop-out not included).
  """

  id: jax.Array
  real: jax.Array
  arrived: jax.Array
  chance: jax.Array


class Context(NamedTuple):
  """What a half of a layer may know besides its value and its state.

  Attributes:
    key: PRNG key of (seed, round, layer, role, client): nobody else has it.
    common: PRNG key of (seed, round, layer): the same for all clients and the server.
    round: int32, the round's number, from 0.
    me: `Member` of scalars in a client half, the cohort in a stacked half, else None.
    cohort: `Member` of arrays [C]; None while selecting.
    params: the server's parameters at the start of the round.
    shared: the server state of this very layer at the start of the round: with `params`, the only
      broadcast there is.
    like: shapes and dtypes of what this layer's client half receives, hence of what its server
      half must give back. For the layers up to the algorithm it is None on the server.
  """

  key: jax.Array
  common: jax.Array
  round: jax.Array
  me: Any
  cohort: Any
  params: Tree
  shared: Tree
  like: Any


class Task(NamedTuple):
  """What enters the client chain: the parameters to start from and the client's examples."""

  params: Tree
  data: Examples


class Message(NamedTuple):
  """What leaves the client chain. Every leaf is summed over the cohort.

  Attributes:
    payload: the update, server - client (or a tree that contains it).
    weight: float32 scalar; 0 means "takes no part". On the server, after the division, the divisor
      that was used. Negative, from a server half whose layer `withholds`: nothing is released.
    aux: dict of what is summed beside the payload and neither clipped nor compressed. The layer
      that adds an entry removes it.
  """

  payload: Tree
  weight: jax.Array
  aux: dict[str, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean:
  """A client metric reported as sum(total) / sum(count) over the cohort (example-weighted)."""

  total: jax.Array
  count: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Total:
  """A client metric reported as its sum over the cohort (examples, bits, steps)."""

  value: jax.Array


# (ctx, batch of examples [B, ...], weights [B], mask [B], number of their clients) -> (sum of
# weight x what an example adds to the payload, metrics: `Mean`s and `Total`s with the names that
# the client half gives). An example's weight is that of its client over the client's examples.
Pool = Callable[
  [Context, dict[str, jax.Array], jax.Array, jax.Array, jax.Array], tuple[Tree, Metrics]
]


def _pass(ctx: Context, value: Any, state: Tree) -> tuple[Any, Tree, Metrics]:
  del ctx
  return value, state, {}


def _nothing(ctx: Context) -> Tree:
  del ctx
  return ()


class Stage(NamedTuple):
  """One half of a layer; the default passes its value on.

  Attributes:
    apply: (ctx, value, state) -> (value, state, metrics), always in this order. The state keeps
      its structure, shapes and dtypes. Metrics are scalars (the mean over the cohort is reported),
      `Mean`s or `Total`s.
    init: ctx -> state: of one client in a client half (the engine keeps the table [N, ...]), one
      value in a server half.
  """

  apply: Callable[[Context, Any, Tree], tuple[Any, Tree, Metrics]] = _pass
  init: Callable[[Context], Tree] = _nothing


class Sampling(NamedTuple):
  """Plain data that says how a sampler draws, for the accountant (no arrays, no functions).

  Attributes:
    scheme: 'poisson' (independent inclusion), 'without_replacement' (uniform, fixed size),
      'cyclic' (fixed order) or 'data_dependent'.
    population: N, clients.
    expected: clients expected in a cohort (C, or N * rate).
    capacity: rows of a cohort; a Poisson cohort beyond it is cut uniformly.
    separation: rounds between two participations of a client at the least; None: not enforced.
  """

  scheme: str
  population: int
  expected: float
  capacity: int
  separation: int | None = None


class Sampler(NamedTuple):
  """Draws the cohort of a round.

  Attributes:
    apply: (ctx, own client table [N, ...], own server state) -> (cohort, server state, metrics). No
      client is twice in a cohort.
    sampling: plain data about the draw.
  """

  apply: Callable[[Context, Tree, Tree], tuple[Member, Tree, Metrics]]
  sampling: Sampling


class Bound(NamedTuple):
  """What one client can change in the sum: norms of its payload, or None where unknown.

  Attributes:
    l1: bound of the L1 norm.
    l2: bound of the L2 norm.
    linf: bound of the largest absolute value.
  """

  l1: Any = None
  l2: Any = None
  linf: Any = None


class Traits(NamedTuple):
  """What a layer declares about itself; what can be derived from its parts is not repeated.

  Attributes:
    kind: 'select', 'task' (Task -> Task), 'algorithm' (Task -> Message) or 'message'. A layer that
      selects and whose client half looks at tasks or at weighted messages is of that kind.
    payload: 'float' or 'integer', of what leaves the client half.
    weighs: None, or how a weighing layer weighs: 'examples', 'equal' or 'capped'.
    weight: of a weighing layer: the message's weight -> the weight used, both float32.
    divisor: of a weighing layer: None (the realised weight) or the fixed expected cohort.
    mechanism: None, or plain data about the noise, for the accountant.
    adds: whether decode(sum of messages) = sum of decode(message).
    bits: of integers that are summed modulo 2 ** bits, else None.
    clients: of such integers: the most clients whose sum has room.
    masks: whether messages are hidden from here on until they are summed.
    withholds: whether the server half may return a negative weight: the round is then as if nobody
      had been heard; parameters, client states and those of server halves stay as they were.
  """

  kind: str = 'message'
  payload: str = 'float'
  weighs: str | None = None
  weight: Callable[[jax.Array], jax.Array] | None = None
  divisor: float | None = None
  mechanism: Any = None
  adds: bool = True
  bits: int | None = None
  clients: int | None = None
  masks: bool = False
  withholds: bool = False


def _keep_bound(bound: Bound) -> Bound:
  return bound


class Layer(NamedTuple):
  """One concern with two halves, on the two sides of the sum.

  Attributes:
    name: distinct in a round; keys, states and metrics go by it.
    client: what each client does.
    server: what the server does with the aggregate.
    select: a `Sampler` in exactly one layer, else None.
    stacked: the client half is called once, on the whole cohort [C, ...]; its `ctx.me` is the
      cohort. This is how a layer sees individual updates.
    sensitivity: `Bound` of what enters the client half -> `Bound` of what leaves it.
    traits: what the layer declares about itself.
    pooled: of an algorithm whose update may be a sum over examples: (the client half it stands for,
      `Shape`, shapes of the parameters, shapes of a batch) -> how to sum it over all examples of
      many clients at once, or None if it is not such a sum, or the client half was replaced.
  """

  name: str
  client: Stage = Stage()
  server: Stage = Stage()
  select: Sampler | None = None
  stacked: bool = False
  sensitivity: Callable[[Bound], Bound] = _keep_bound
  traits: Traits = Traits()
  pooled: Callable[[Stage, Shape, Tree, dict[str, Any]], Pool | None] | None = None


class State(NamedTuple):
  """The whole state of a run between two rounds: what a checkpoint holds.

  Attributes:
    round: int32, number of rounds done.
    params: the server's parameters.
    clients: for each layer, the table [N, ...] of its client states.
    servers: for each layer, its server state.
  """

  round: jax.Array
  params: Tree
  clients: dict[str, Tree]
  servers: dict[str, Tree]


class IncompatibleStages(ValueError):
  """Two layers that break a guarantee together, or a round that is not a round."""


def onion(*parts: Layer | tuple[Layer, ...]) -> tuple[Layer, ...]:
  """Returns the layers of a round, flattened and checked.

  Args:
    *parts: layers, or tuples of layers (a factory may return several).

  Raises:
    IncompatibleStages: names are not distinct, or not exactly one layer selects or trains.
  """
  layers = tuple(x for part in parts for x in ((part,) if isinstance(part, Layer) else part))
  for layer in layers:
    if not isinstance(layer, Layer):
      raise ValueError(f'every part of an onion must be a Layer, got {layer!r}.')
  names = [layer.name for layer in layers]
  if len(set(names)) < len(names):
    raise IncompatibleStages(f'names of layers must be distinct, got {names!r}.')
  for kind, chosen in (
    ('select the cohort', [x.name for x in layers if x.select is not None]),
    ('be the algorithm', [x.name for x in layers if x.traits.kind == 'algorithm']),
  ):
    if len(chosen) != 1:
      raise IncompatibleStages(f'exactly one layer must {kind}, got {chosen!r} of {names!r}.')
  return layers


def sensitivity(layers: tuple[Layer, ...], until: str | None = None) -> Bound:
  """Returns the bound on one client's payload after all layers, or those up to and with `until`."""
  bound = Bound()
  for layer in layers:
    bound = layer.sensitivity(bound)
    if layer.name == until:
      break
  return bound


def selector(layers: tuple[Layer, ...]) -> tuple[str, Sampler]:
  """Returns the name and the sampler of the one layer that selects."""
  return next((layer.name, layer.select) for layer in layers if layer.select is not None)


def scalar_member(id: jax.typing.ArrayLike, real: bool = True) -> Member:
  """Returns the row of one client that was certain to be drawn; it has arrived if it is real."""
  return Member(jnp.asarray(id, jnp.int32), jnp.bool_(real), jnp.bool_(real), jnp.float32(1))
