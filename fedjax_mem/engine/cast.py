"""What the sides of a round are told: the cast of a round, and the contexts that are made of it.

Here it is decided whether a side's key comes from the run's seed or from the secret root.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  Context,
  Examples,
  Layer,
  Member,
  Population,
  Round,
  Shape,
  Transform,
  Tree,
  keys,
)


class Cast(NamedTuple):
  """What all contexts of a round are made of; `broadcast` makes one.

  Attributes:
    seed: uint32 scalar, the run's seed.
    root: uint32 [2], the secret root.
    round: int32 scalar, from 0.
    params: the server's parameters.
    cohort: `Member` of arrays [C]; None while selecting.
    servers: for each layer, its server state.
    arrays: the population's examples, name -> [T, ...]; empty where no client trains.
    rows: [M] int32, rows of `arrays`, client after client (`Population.index`).
    keys: parents of the keys of all layers (`keys.parents`), from the seed and, where a layer uses
      it, from the root; None: a context derives its own.
  """

  seed: jax.Array
  root: jax.Array
  round: jax.Array
  params: Tree
  cohort: Any
  servers: dict[str, Tree]
  arrays: dict[str, jax.Array]
  rows: jax.Array
  keys: tuple[jax.Array, ...] | None = None

  def bare(self) -> 'Cast':
    """Returns the cast without examples, for sides of which no context has any."""
    return self._replace(arrays={}, rows=jnp.zeros(0, jnp.int32))

  def deriving(self, layers: Round) -> 'Cast':
    """Returns the cast with the keys of these layers, derived once for all their contexts."""
    roots = [keys.seed_key(self.seed), *([keys.root_key(self.root)] if layers.secret else [])]
    names = [x.name for x in layers]
    return self._replace(keys=tuple(keys.parents(x, self.round, names) for x in roots))


def broadcast(
  seed: jax.typing.ArrayLike,
  round: jax.typing.ArrayLike,
  params: Tree,
  *,
  root: jax.typing.ArrayLike,
  cohort: Member | None = None,
  servers: dict[str, Tree] | None = None,
  population: Population | None = None,
) -> Cast:
  """Returns the `Cast` of a round; it has its own copy of the dict `servers`.

  The arguments are its attributes. Where no noise is drawn, the root may be `keys.open_root(seed)`.
  """
  arrays = {} if population is None else population.arrays
  rows = jnp.zeros(0, jnp.int32) if population is None else population.index
  seed, round = jnp.asarray(seed, jnp.uint32), jnp.asarray(round, jnp.int32)
  root = jnp.asarray(root, jnp.uint32)
  return Cast(seed, root, round, params, cohort, dict(servers or {}), arrays, rows)


def context(
  layers: Round,
  layer: Layer,
  role: str,
  cast: Cast,
  specs: dict[str, Tree],
  client: Member | None = None,
  table: Tree = None,
) -> Context:
  """Returns the context of one side of a layer.

  Args:
    layers: of the round.
    layer: the layer.
    role: 'select', 'init', 'client', 'cohort' or 'server'.
    cast: of the round.
    specs: for each layer traced so far, the shapes that its client side receives.
    client: the one client, on a client side.
    table: the layer's client states, on a select side that looks at data.
  """
  secret = _secret(layers, layer, role, client is not None)
  # A layer's first server state and its clients' first rows are drawn from different keys.
  if role == 'init' and client is not None:
    role = 'client_init'
  key = _parent(layers, layer, role, cast, secret)
  return Context(
    key=key if client is None else jax.random.fold_in(key, client.id),
    round_key=_parent(layers, layer, 'round', cast, False),
    round=cast.round,
    client=client,
    cohort=cast.cohort,
    params=cast.params,
    server_state=cast.servers.get(layer.name),
    spec=specs.get(layer.name),
    table=table,
  )


def _parent(layers: Round, layer: Layer, role: str, cast: Cast, secret: bool) -> jax.Array:
  """Returns the key of a role, from the secret root or from the run's seed."""
  if cast.keys is None:
    root = keys.root_key(cast.root) if secret else keys.seed_key(cast.seed)
    return keys.role_key(keys.layer_key(root, cast.round, layer.name), role)
  return cast.keys[secret][[x.name for x in layers].index(layer.name), keys.ROLES.index(role)]


def _secret(layers: Round, layer: Layer, role: str, client: bool) -> bool:
  """Returns whether the key of this role comes from the secret root.

  A state is initialised with the key of the pair of sides that it belongs to.
  """
  pair = ('client', 'cohort') if client else ('select', 'server')
  sides = pair if role == 'init' else (role,)
  return any((layer.name, side) in layers.secret for side in sides)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
  """One client of the cohort and where its examples are; with a leading axis [C], the cohort.

  Attributes:
    client: the client.
    start: int32, where the client's part of the population's index begins.
    count: int32, number of the client's examples (0 for padding).
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
  """Returns one client's view of its examples; the arguments are those of `Examples`."""
  return Examples(
    cast.arrays, cast.rows, row.start, row.count, longest, shape.capacity, ragged, transforms
  )
