"""The cohort of a round: its padding, and the rows of its clients in the tables."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_mem.core import Member, Population, Tree, tree
from fedjax_mem.engine.cast import Row
from fedjax_mem.engine.mesh import AXIS, mapped, undivided
from fedjax_mem.kernels.loops import across

# Bytes of rows that all devices exchange at once: a small part of a CPU's last-level cache.
EXCHANGED = 2**23


def pad(cohort: Member, capacity: int, population: int) -> Member:
  """Returns the cohort with padding rows up to `capacity`; a padding id is the population's size.

  That id is beyond every table. So a gather clips it and reads some row, which nothing uses, and a
  scatter drops what it would write.
  """
  spare = capacity - cohort.id.shape[0]
  fill = (population, False, False, 1)
  padded = (jnp.pad(x, (0, spare), constant_values=f) for x, f in zip(cohort, fill, strict=True))
  return Member(*padded)


def rows(population: Population, cohort: Member) -> Row:
  """Returns the cohort's rows [C], where padding has no examples."""
  start = population.start.at[cohort.id].get(mode='clip')
  count = population.count.at[cohort.id].get(mode='clip')
  return Row(cohort, start, jnp.where(cohort.real, count, 0))


def gather(tables: Tree, ids: jax.Array) -> Tree:
  """Returns the rows `ids` ([C], or one) of tables [N, ...]; padding gets an arbitrary row."""
  return jax.tree.map(lambda x: x.at[ids].get(mode='clip'), tables)


def commit(
  tables: Tree, ids: jax.Array, ok: jax.Array, new: Tree, mesh: Mesh, divided: bool = False
) -> Tree:
  """Returns the tables [N, ...] with the rows of the clients that are `ok` [C] replaced.

  Long rows are exchanged a few at a time: what the other devices send is written while it is in the
  cache, and no device holds a copy of all new rows.

  Args:
    tables: client states.
    ids: [C] of the cohort.
    ok: [C] bool, whether a client's row is replaced.
    new: rows [C, ...]; C is a multiple of the devices.
    mesh: the devices.
    divided: whether a device has N / devices rows of the tables, else it has all of them.
  """
  # A place beyond the table drops the row.
  places = jax.tree.map(lambda table: jnp.where(ok, ids, len(table)), tables)

  def write(tables: Tree, places: Tree, new: Tree) -> Tree:
    put = lambda table, places, rows: table.at[places].set(rows, mode='drop')
    return jax.tree.map(put, tables, places, new)

  slots = len(ids) // mesh.shape[AXIS]
  # Rows that a device sends at once, then the largest divisor of its rows that is not above that.
  several = EXCHANGED // max(1, tree.nbytes(new) // slots)
  if mesh.size == 1 or (several >= slots and not divided):
    return write(tables, places, new)
  several = max(n for n in range(1, max(1, min(several, slots)) + 1) if slots % n == 0)

  def here(table: jax.Array, places: jax.Array) -> jax.Array:
    place = places - jax.lax.axis_index(AXIS) * len(table)
    return jnp.where((place >= 0) & (place < len(table)), place, len(table))

  def on_mesh(tables: Tree, places: Tree, new: Tree) -> Tree:
    def step(i: jax.Array, tables: Tree) -> Tree:
      some = lambda x: jax.lax.dynamic_slice_in_dim(x, i * several, several)
      sent = jax.tree.map(some, (places, new))
      spots, rows = undivided(lambda x: across.gathered(x, AXIS))(sent)
      return write(tables, jax.tree.map(here, tables, spots) if divided else spots, rows)

    return jax.lax.fori_loop(0, slots // several, step, tables)

  split, whole = PartitionSpec(AXIS), PartitionSpec()
  held = split if divided else whole
  written: Tree = mapped(on_mesh, mesh, (held, split, split), held)(tables, places, new)
  return written
