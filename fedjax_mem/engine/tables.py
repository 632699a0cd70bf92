"""Tables of client states: read and written in the loop over clients, divided over the devices.

Where nothing that comes after a client can undo what it leaves behind, its row is written as soon
as it has run, in place: no round holds a second copy of the cohort's rows. A device then has
N / devices rows of every table. The row of a client that runs elsewhere is fetched before its step
and sent back after. Clients with equally many examples run where their row is as far as there is
room (`at_home`); others run in the order of their sizes, so that they are padded little.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_mem.core import Round, State, Tree, Withholds, tree
from fedjax_mem.engine import cohort as cohorts
from fedjax_mem.engine.clients import Layout
from fedjax_mem.engine.mesh import AXIS, replicated
from fedjax_mem.engine.walk import Row


def divides(layers: Round, num_clients: int, devices: int) -> bool:
  """Returns whether the rows of N clients are divided over the devices, and written in the loop.

  Not if a layer sees the whole cohort or withholds the round: what it leaves out must be undone.
  """
  final = not (layers.having(Withholds) or any(x.cohort is not None for x in layers))
  return final and num_clients % devices == 0


def at_home(row: Row, population: int, devices: int) -> Row:
  """Returns the rows [C] in an order in which clients run on the device that has their row.

  A device that has more of them than places, C / devices, leaves the last to others.

  Args:
    row: of the cohort; C is a multiple of the devices.
    population: N, a multiple of the devices.
    devices: that the cohort, and the rows of the population, are cut into.
  """
  places = len(row.count) // devices
  home = row.client.id // (population // devices)  # that of padding is no device
  here = home[:, None] == jnp.arange(devices)[None]
  rank = jnp.where(here, jnp.cumsum(here, 0), 0).sum(1, dtype=jnp.int32) - 1
  stays = (home < devices) & (rank < places)
  taken = jnp.arange(places)[None] < here.sum(0)[:, None]
  # Those that stay are as many as the places taken; the others fill what is free, padding last.
  last = (home == devices).astype(jnp.int32)
  clients = jnp.argsort(jnp.where(stays, 2 + home * places + rank, last), stable=True)
  order = jnp.zeros_like(clients).at[jnp.argsort(taken.reshape(-1), stable=True)].set(clients)
  arranged: Row = jax.tree.map(lambda x: x[order], row)
  return arranged


def whole(table: Tree, mesh: Mesh) -> Tree:
  """Returns the table with all of its rows on every device, as a sampler reads it.

  Its sums are then taken in the same order on any number of devices.
  """
  if mesh.size == 1:
    return table
  return jax.lax.with_sharding_constraint(table, replicated(mesh))


def shardings(divided: bool, mesh: Mesh) -> State:
  """Returns where the state of a run is kept: a prefix of its tree.

  Args:
    divided: whether a device has but its part of the tables.
    mesh: the devices.
  """
  everywhere: Any = replicated(mesh)
  rows: Any = NamedSharding(mesh, PartitionSpec(AXIS)) if divided and mesh.size > 1 else everywhere
  return State(everywhere, everywhere, rows, everywhere)


class Turn(NamedTuple):
  """The clients that run at once, of all devices: k side by side on each (looped: no such axis).

  Attributes:
    ids: [devices, k].
    rows: rows of a table on a device.
    me: this device, or None where there is but one.
  """

  ids: jax.Array
  rows: int
  me: jax.Array | None

  def places(self, device: Any) -> jax.Array:
    """Returns where this device has the rows of that device's clients; `rows` if it has not."""
    if self.me is None:
      return self.ids[0]
    place = self.ids[device] - self.me * self.rows
    return jnp.where((place >= 0) & (place < self.rows), place, self.rows)

  @property
  def away(self) -> jax.Array:
    """Which of the clients are not where their row is, [devices, k]; never padding."""
    home = self.ids // self.rows
    devices = jnp.arange(len(home)).reshape((-1,) + (1,) * (home.ndim - 1))
    return (home != devices) & (home < len(home))


def turn(ids: jax.Array, slot: jax.Array, population: int, layout: Layout) -> Turn:
  """Returns the turn of the clients in these places of the cohort.

  Args:
    ids: [C] of the cohort.
    slot: [k] places, or one (looped), that this device runs now.
    population: N.
    layout: how the cohort is laid out.
  """
  steps = ids.reshape(layout.devices, -1, *slot.shape)
  now = slot.reshape(-1)[0] // layout.chunk % steps.shape[1]
  me = jax.lax.axis_index(AXIS) if layout.devices > 1 else None
  return Turn(steps[:, now], population // layout.devices, me)


def read(tables: Tree, turn: Turn) -> Tree:
  """Returns the rows [k, ...] of this device's clients; padding gets some row, or zeros."""
  me = turn.me

  def fetch(device: jax.Array, rows: Tree) -> Tree:
    if me is None:
      return tree.keep(device < 0, rows)  # for the sake of the loop
    places = turn.places(device)
    got = _only(places < turn.rows, cohorts.gather(tables, places))
    return tree.select(device == me, got, rows)

  # On one device there is nothing to fetch, but what a loop gives is in memory: else the compiler
  # may read a row again after it has been written, from a copy of the whole table.
  return _each(turn.away, fetch, cohorts.gather(tables, turn.places(me)))


def write(tables: Tree, turn: Turn, ok: jax.Array, new: Tree) -> Tree:
  """Returns the tables with the rows [k, ...] of this device's clients that are `ok` [k] replaced.

  Those that other devices send are written, too.
  """

  def put(tables: Tree, places: jax.Array, ok: jax.Array, rows: Tree) -> Tree:
    # Beyond the table, a row is dropped.
    at = jnp.where(ok, places, turn.rows)
    return jax.tree.map(lambda table, x: table.at[at].set(x, mode='drop'), tables, rows)

  me = turn.me
  tables = put(tables, turn.places(me), ok, new)
  if me is None:
    return tables

  def send(device: jax.Array, tables: Tree) -> Tree:
    sound, rows = _only(jnp.broadcast_to(device == me, ok.shape), (ok, new))
    return put(tables, turn.places(device), sound & (device != me), rows)

  return _each(turn.away, send, tables)


def _each(away: jax.Array, f: Any, carry: Tree) -> Tree:
  """Returns the carry after f(device, carry) for every device with a client that is `away`."""
  some = away.reshape(len(away), -1).any(1)
  devices = jnp.argsort(~some, stable=True)
  return jax.lax.fori_loop(0, some.sum(), lambda i, carry: f(devices[i], carry), carry)


def _only(on: jax.Array, rows: Tree) -> Tree:
  """Returns the rows [k, ...], to the bit, of the one device on which each is `on` [k]."""

  def one(x: jax.Array) -> jax.Array:
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
      return jax.lax.complex(one(x.real), one(x.imag))
    if not jnp.issubdtype(x.dtype, jnp.floating):
      wide = x.dtype if x.dtype.itemsize >= 4 else jnp.dtype(jnp.int32)
      summed: jax.Array = jax.lax.psum(x.astype(wide), AXIS)
      return summed.astype(x.dtype)
    # Summed as integers: a sum of floats would turn -0 into 0.
    bits = jnp.dtype(f'uint{8 * x.dtype.itemsize}')
    wide = bits if x.dtype.itemsize > 4 else jnp.dtype(jnp.uint32)
    whole = jax.lax.psum(jax.lax.bitcast_convert_type(x, bits).astype(wide), AXIS)
    return jax.lax.bitcast_convert_type(whole.astype(bits), x.dtype)

  kept = tree.keep(on, rows)
  return jax.tree.map(one, kept)
