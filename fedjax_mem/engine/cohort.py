"""The cohort of a round: padding, order, rows of the tables, and what is written back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Member, Population
from fedjax_mem.engine.context import Row

Tree = Any


def pad(cohort: Member, capacity: int, population: int) -> Member:
  """Returns the cohort with padding rows up to `capacity`; a padding id is the population's size.

  An id beyond the table is dropped by a scatter and clipped by a gather, both on purpose.
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


def arrange(row: Row, chunk: int, devices: int) -> Row:
  """Returns the rows [C] in an order that wastes little: alike sizes together, devices balanced.

  Sorted by size, they are cut into chunks, and the chunks dealt to the devices there and back. The
  order of clients changes no draw; it changes the order of floating-point sums.
  """
  capacity = row.count.shape[0]
  chunks = np.arange(capacity // chunk).reshape(-1, devices)
  chunks[1::2] = chunks[1::2, ::-1].copy()
  places = (chunks.T.reshape(-1, 1) * chunk + np.arange(chunk)).reshape(-1)
  order = jnp.argsort(-row.count, stable=True)[places]
  return jax.tree.map(lambda x: x[order], row)


def gather(tables: Tree, ids: jax.Array) -> Tree:
  """Returns the rows `ids` ([C], or one) of tables [N, ...]; a padding id gives some row."""
  return jax.tree.map(lambda x: x.at[ids].get(mode='clip'), tables)


def commit(tables: Tree, ids: jax.Array, ok: jax.Array, new: Tree) -> Tree:
  """Returns the tables [N, ...] with the rows of the clients that are `ok` [C] replaced."""

  def written(table: jax.Array, rows: jax.Array) -> jax.Array:
    # Out of the table, a row is dropped.
    return table.at[jnp.where(ok, ids, len(table))].set(rows, mode='drop')

  return jax.tree.map(written, tables, new)
