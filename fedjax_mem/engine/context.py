"""What a half of a layer is told, made from what the whole round knows."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fedjax_mem.core import Context, Examples, Layer, Member, Shape, keys

Tree = Any


class Broadcast(NamedTuple):
  """What every client and the server know at the start of a round.

  Attributes:
    seed: uint32 scalar, the run's seed.
    round: int32 scalar, from 0.
    params: the server's parameters.
    cohort: `Member` of arrays [C]; None while selecting.
    servers: for each layer, its server state.
    arrays: the population's examples, name -> [T, ...].
    rows: [M] int32, rows of `arrays`.
  """

  seed: jax.Array
  round: jax.Array
  params: Tree
  cohort: Any
  servers: dict[str, Tree]
  arrays: dict[str, jax.Array]
  rows: jax.Array


def context(
  layer: Layer,
  role: str,
  cast: Broadcast,
  like: dict[str, Tree],
  me: Member | None = None,
) -> Context:
  """Returns the context of one half of a layer.

  Args:
    layer: the layer.
    role: 'select', 'init', 'client', 'cohort' (a stacked client half) or 'server'.
    cast: what everyone knows.
    like: for each layer traced so far, the shapes that its client half receives.
    me: the client, or for a stacked half the cohort.
  """
  base = keys.layer_key(keys.seed_key(cast.seed), cast.round, layer.name)
  if role == 'init' and me is not None:
    role = 'client_init'
  one = me is not None and role in ('client', 'client_init')
  return Context(
    key=keys.role_key(base, role, me.id if one and me is not None else None),
    common=keys.role_key(base, 'common'),
    round=cast.round,
    me=me,
    cohort=cast.cohort,
    params=cast.params,
    shared=cast.servers.get(layer.name),
    like=like.get(layer.name),
  )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
  """What belongs to one client of the cohort; with a leading axis [C], to the cohort.

  Attributes:
    me: the client.
    start: int32, where its part of the population's index begins.
    count: int32, its examples (0 for padding).
  """

  me: Member
  start: jax.Array
  count: jax.Array


def examples(
  cast: Broadcast,
  row: Row,
  longest: jax.Array,
  shape: Shape,
  ragged: bool,
  transforms: tuple[Callable[[dict], dict], ...] = (),
) -> Examples:
  """Returns one client's view of its examples."""
  return Examples(
    cast.arrays, cast.rows, row.start, row.count, longest, shape.capacity, ragged, transforms
  )
