"""Tables of client states: divided over the devices, read and written in the loop over clients.

A table has one row a client, [N, ...], and is divided if N is a multiple of the devices: every
device has N / devices rows of it. Where nothing later in the round can undo a client's new state,
its row is written in place as soon as the client has run, so that no round holds a second copy of
the cohort's rows. Else the rows [C, ...] are written after the round (`cohort.commit`).

A client may run on a device that does not have its row. All devices run the same step at the same
time, so before the step (`read`) every such row is sent from its device to the one that runs the
client, and after the step (`write`) the new row is sent back. Clients with equally many examples
run where their row is, as far as there is room, so that few rows are sent. Others run in the order
of their numbers of examples, so that little of a chunk is padding (`places.py`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_mem.core import Round, State, Tree, Withholds, tree
from fedjax_mem.engine import cohort as cohorts
from fedjax_mem.engine import shards
from fedjax_mem.engine.clients import Layout
from fedjax_mem.engine.mesh import AXIS, mapped, replicated, undivided
from fedjax_mem.engine.places import home
from fedjax_mem.kernels.loops import across


def written_at_once(layers: Round) -> bool:
  """Returns whether a client's new row may be written as soon as the client has run.

  It may not if a layer has a cohort side or withholds the round: whether a row counts is then known
  only after all clients have run.
  """
  return not (layers.having(Withholds) or any(x.cohort is not None for x in layers))


def shardings(divided: bool, mesh: Mesh, specs: State | None = None) -> State:
  """Returns where the state of a run is kept: a prefix of its tree.

  Args:
    divided: whether each device has only its part of the tables.
    mesh: the devices.
    specs: `Setting.shards`; with them it is a whole tree.
  """
  if specs is not None:
    return shards.shardings(specs, divided, mesh)
  everywhere: Any = replicated(mesh)
  rows: Any = NamedSharding(mesh, PartitionSpec(AXIS)) if divided and mesh.size > 1 else everywhere
  return State(everywhere, everywhere, rows, everywhere)


class Turn(NamedTuple):
  """The clients that run at the same time on all devices, as one device sees them.

  Attributes:
    ids: [devices, k], k side by side on each device ([devices] if looped).
    population: N.
    me: number of this device, or None if it is the only one.
  """

  ids: jax.Array
  population: int
  me: jax.Array | None

  @property
  def rows(self) -> int:
    """Rows of a divided table on a device."""
    return self.population // len(self.ids)

  def places(self, device: Any) -> jax.Array:
    """Returns where in this device's part the rows of `device`'s clients are; `rows`: not here."""
    if self.me is None:
      return self.ids[0]
    place = self.ids[device] - self.me * self.rows
    return jnp.where((place >= 0) & (place < self.rows), place, self.rows)

  @property
  def homes(self) -> jax.Array:
    """The devices that have the rows of these clients, [devices, k]; `devices` for padding."""
    return home(self.ids, self.population, len(self.ids))

  @property
  def away(self) -> jax.Array:
    """Which clients run on another device than the one that has their row, [devices, k]."""
    devices = jnp.arange(len(self.ids)).reshape((-1,) + (1,) * (self.ids.ndim - 1))
    return (self.homes != devices) & (self.homes < len(self.ids))


def turn(ids: jax.Array, slot: jax.Array, population: int, layout: Layout) -> Turn:
  """Returns the turn of the clients in these places of the cohort.

  Args:
    ids: [C] of the cohort.
    slot: [k] places, or one (looped), that this device runs now.
    population: N.
    layout: how the cohort is laid out.
  """
  me = jax.lax.axis_index(AXIS) if layout.devices > 1 else None
  return Turn(now(ids, slot, layout), population, me)


def now(values: Tree, slot: jax.Array, layout: Layout) -> Tree:
  """Returns what the clients of all devices have that run in the same step, [devices, k].

  Args:
    values: of the cohort, [C] each.
    slot: as in `turn`.
    layout: how the cohort is laid out.
  """

  def one(x: jax.Array) -> jax.Array:
    # Every device runs its part of the cohort in the same number of steps: this is one of them.
    steps = x.reshape(layout.devices, -1, *slot.shape)
    return steps[:, slot.reshape(-1)[0] // layout.chunk % steps.shape[1]]

  return jax.tree.map(one, values)


def read(tables: Tree, turn: Turn) -> Tree:
  """Returns the rows [k, ...] of this device's clients; those of padding mean nothing."""
  me = turn.me

  def fetch(device: jax.Array, rows: Tree) -> Tree:
    if me is None:
      return tree.keep(device < 0, rows)  # never runs: one device has all rows
    places = turn.places(device)
    got = _only(places < turn.rows, cohorts.gather(tables, places))
    return tree.select(device == me, got, rows)

  # One device fetches nothing. The loop, of no passes, is there since its result must be in memory:
  # otherwise the compiler may read a row after it has been written, from a copy of the whole table.
  return _each(turn.away, fetch, cohorts.gather(tables, turn.places(me)))


def write(tables: Tree, turn: Turn, ok: jax.Array, new: Tree) -> Tree:
  """Returns the tables with the rows [k, ...] of this device's clients that are `ok` [k] replaced.

  The new rows of clients that ran on other devices, and whose rows are here, are written too.
  """

  def put(tables: Tree, places: jax.Array, ok: jax.Array, rows: Tree) -> Tree:
    # A place beyond the table drops the row.
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


def rows_of(tables: Tree, ids: jax.Array, mesh: Mesh, divided: bool) -> Tree:
  """Returns the rows [C, ...] of clients on every device; those of padding mean nothing.

  Args:
    tables: client states [N, ...].
    ids: [C].
    mesh: the devices.
    divided: whether the tables are divided over them.
  """
  if not (divided and jax.tree.leaves(tables)):
    return cohorts.gather(tables, ids)

  def on_mesh(tables: Tree, ids: jax.Array) -> Tree:
    rows = len(jax.tree.leaves(tables)[0])
    place = ids - jax.lax.axis_index(AXIS) * rows
    here = (place >= 0) & (place < rows)
    return _only(here, cohorts.gather(tables, place))

  whole = PartitionSpec()
  found: Tree = mapped(on_mesh, mesh, (PartitionSpec(AXIS), whole), whole)(tables, ids)
  return found


def _each(away: jax.Array, f: Any, carry: Tree) -> Tree:
  """Returns the carry after f(device, carry) for every device with a client that is `away`.

  All devices make the same passes, as `f` exchanges rows between them.
  """
  some = away.reshape(len(away), -1).any(1)
  devices = jnp.argsort(~some, stable=True)
  return jax.lax.fori_loop(0, some.sum(), lambda i, carry: f(devices[i], carry), carry)


def _only(on: jax.Array, rows: Tree) -> Tree:
  """Returns on every device the rows [k, ...] of the one device on which each is `on` [k]."""
  return undivided(lambda x: across.only(jnp.bool_(True), x, AXIS))(tree.keep(on, rows))
