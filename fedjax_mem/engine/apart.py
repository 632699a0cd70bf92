"""Examples divided over the devices: each device has those of its own clients.

The clients are cut into as many blocks as there are devices (`places.home`). A device holds the
examples of its block: the rows of the population's arrays that its clients have, and where each of
them has its own. Clients run on the device that has their examples, as far as there is room
(`places.at_home`). The examples of the others are sent before the step in which they run, one
client at a time and to the bit, and are counted (`moved`); nobody is left out.

In every step the examples of the clients that run on a device side by side lie in one buffer, those
from here and those that were sent alike, so that what trains on them is told nothing of this. The
buffer has room for the k largest clients of the population.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_mem.core import Population, Tree
from fedjax_mem.data.source import aligned_zeros, forget
from fedjax_mem.engine import tables
from fedjax_mem.engine.cast import Cast, Row
from fedjax_mem.engine.clients import Layout
from fedjax_mem.engine.mesh import AXIS, groups, put, replicated, undivided
from fedjax_mem.engine.places import blocks
from fedjax_mem.engine.setting import Setting
from fedjax_mem.kernels.loops import across


def divide(population: Any, mesh: Mesh) -> Population:
  """Returns the population with its examples divided over the devices.

  Only the examples of this process's devices are read.

  Args:
    population: with the attributes of a `Population`, on the host: arrays [T, ...] that may be
      memory-mapped, index [M], start [N] and count [N].
    mesh: the n devices.

  Returns:
    arrays [n R, ...] and index [n I], of which each device has R and I; start [N], where a
    client's part of the index of its own device begins; count [N], as it was.
  """
  held, sizes, like = _blocks(population, mesh)
  count = np.asarray(population.count)

  def part(device: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    rows, places = held[device]
    found = {}
    for name, x in population.arrays.items():
      found[name] = aligned_zeros((len(rows), *like[name].shape), like[name].dtype)
      np.take(np.asarray(x), rows, axis=0, out=found[name], mode='clip')
      forget(x)
    return found, places

  local = np.concatenate([_starts(count[a:b]) for a, b in blocks(len(count), mesh.shape[AXIS])])
  return assemble(part, sizes, like, local, count, mesh)


def shapes(population: Any, mesh: Mesh) -> Population:
  """Returns the shapes of the divided population, with how they lie on the devices."""
  _, sizes, like = _blocks(population, mesh)
  split, whole = NamedSharding(mesh, PartitionSpec(AXIS)), replicated(mesh)
  shape: Any = jax.ShapeDtypeStruct
  rows, places = (mesh.shape[AXIS] * max(size, 1) for size in sizes)
  each: Any = shape(np.shape(population.count), np.int32, sharding=whole)
  return Population(
    {k: shape((rows, *x.shape), x.dtype, sharding=split) for k, x in like.items()},
    shape((places,), np.int32, sharding=split),
    each,
    each,
  )


# For each device (its rows of the arrays, its index); (R, I); name -> shape and dtype of a row
_Blocks = tuple[
  list[tuple[np.ndarray, np.ndarray]], tuple[int, int], dict[str, jax.ShapeDtypeStruct]
]


def _blocks(population: Any, mesh: Mesh) -> _Blocks:
  """Returns what each device has of the examples."""
  start, count = (np.asarray(x) for x in (population.start, population.count))
  index, bounds = np.asarray(population.index), blocks(len(count), mesh.shape[AXIS])
  like = {k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in population.arrays.items()}
  total = len(next(iter(population.arrays.values())))
  held = [_rows(index, start[a:b], count[a:b], total) for a, b in bounds]
  sizes = max(len(rows) for rows, _ in held), max(len(places) for _, places in held)
  return held, sizes, like


def assemble(
  part: Callable[[int], tuple[dict[str, np.ndarray], np.ndarray]],
  sizes: tuple[int, int],
  like: dict[str, jax.ShapeDtypeStruct],
  start: np.ndarray,
  count: np.ndarray,
  mesh: Mesh,
) -> Population:
  """Returns a divided population; of this process's devices alone the parts are asked for.

  Args:
    part: device -> (its rows [at most R, ...], its index [at most I]).
    sizes: (R, I).
    like: name -> shape and dtype of one example.
    start: [N], where a client's part of the index of its own device begins.
    count: [N].
    mesh: the n devices.
  """
  split, whole = NamedSharding(mesh, PartitionSpec(AXIS)), replicated(mesh)
  mine = {}
  for device, there in enumerate(groups(mesh)):
    if any(x.process_index == jax.process_index() for x in there):
      arrays, index = part(device)
      mine[device] = {**{f'/{name}': x for name, x in arrays.items()}, 'index': index}

  def spread(name: str, size: int, one: Any) -> jax.Array:
    size = max(size, 1)

    def of(where: Any) -> np.ndarray:
      rows: np.ndarray = mine[(where[0].start or 0) // size][name]
      if len(rows) == size:
        return rows
      filled = aligned_zeros((size, *one.shape), one.dtype)
      filled[: len(rows)] = rows
      return filled

    shape = (mesh.shape[AXIS] * size, *one.shape)
    return jax.make_array_from_callback(shape, split, of)

  return Population(
    {name: spread(f'/{name}', sizes[0], one) for name, one in like.items()},
    spread('index', sizes[1], jax.ShapeDtypeStruct((), np.int32)),
    put(start.astype(np.int32), whole),
    put(count.astype(np.int32), whole),
  )


def _starts(count: np.ndarray) -> np.ndarray:
  first: np.ndarray = np.cumsum(count) - count
  return first


def _rows(
  index: np.ndarray, start: np.ndarray, count: np.ndarray, total: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (rows of the arrays that some clients have, places of the clients' examples in them).

  Args:
    index: [M], of the population.
    start: [k] of these clients.
    count: [k] of these clients.
    total: T, rows of the arrays.
  """
  within = np.arange(count.sum()) - np.repeat(_starts(count), count)
  wanted = index[np.repeat(start, count) + within]
  used = np.zeros(total, bool)
  used[wanted] = True
  place = np.cumsum(used, dtype=np.int32) - 1
  return np.flatnonzero(used), place[wanted]


def specs(cast: Cast) -> Cast:
  """Returns how the fields of a cast lie on the mesh: its examples divided, all else whole."""
  fields: dict[str, Any] = dict.fromkeys(cast._fields, PartitionSpec())
  split = PartitionSpec(AXIS)
  made: Cast = Cast(**{**fields, 'arrays': split, 'rows': split})
  return made


def gathered(
  setting: Setting, layout: Layout, cast: Cast, row: Row, cohort: Row, slot: jax.Array
) -> tuple[Cast, Row]:
  """Returns the cast and the rows with the examples of a step's clients, wherever they were.

  Args:
    setting: of the run.
    layout: how the cohort is laid out, that of the setting or another one.
    cast: with what this device has of the examples.
    row: this device's clients of the step, [k] or one.
    cohort: the rows of the cohort, [C].
    slot: the places of this device's clients in the cohort, [k] or one.
  """
  rooms: Any = setting.apart
  turn = tables.turn(cohort.client.id, slot, setting.shape.num_clients, layout)
  counts = row.count.reshape(-1)
  ends = jnp.cumsum(counts, dtype=jnp.int32)
  begins = ends - counts
  place = jnp.arange(rooms.clients(len(counts)), dtype=jnp.int32)
  whose = jnp.searchsorted(ends, place, side='right').clip(0, len(counts) - 1)
  held = _taken(cast, row.start.reshape(-1)[whose] + place - begins[whose])
  held = _sent(cast, held, turn, tables.now(cohort, slot, layout), begins, rooms.clients(1))
  row = Row(row.client, begins.reshape(row.start.shape), row.count)
  return cast._replace(arrays=held, rows=place), row


def _taken(cast: Cast, places: jax.Array) -> dict[str, jax.Array]:
  """Returns the examples at these places of the device's index."""
  rows = cast.rows.at[places].get(mode='clip')
  return {name: x.at[rows].get(mode='clip') for name, x in cast.arrays.items()}


def _sent(
  cast: Cast, held: Tree, turn: tables.Turn, everyone: Row, begins: jax.Array, longest: int
) -> dict[str, jax.Array]:
  """Returns the buffer with the examples of the clients whose device is another one."""
  me: Any = turn.me
  away = turn.away.reshape(-1)
  start, count = (x.reshape(-1) for x in (everyone.start, everyone.count))
  homes, side_by_side = turn.homes.reshape(-1), len(begins)
  order = jnp.argsort(~away, stable=True)
  room = len(next(iter(held.values())))
  place = jnp.arange(longest, dtype=jnp.int32)

  def send(i: jax.Array, held: dict[str, jax.Array]) -> dict[str, jax.Array]:
    slot = order[i]
    found = _taken(cast, start[slot] + place)
    got = undivided(lambda on, x: across.only(on, x, AXIS))(homes[slot] == me, found)
    at = begins[slot % side_by_side] + place
    mine = (slot // side_by_side == me) & (place < count[slot])
    # A place beyond the buffer drops the row.
    at = jnp.where(mine, at, room)
    return {name: x.at[at].set(got[name], mode='drop') for name, x in held.items()}

  summed: dict[str, jax.Array] = jax.lax.fori_loop(0, away.sum(), send, held)
  return summed
