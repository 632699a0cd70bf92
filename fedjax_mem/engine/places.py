"""Who runs where: the clients of each device, and the places of a cohort on the devices.

A device is the home of a block of clients: rows of client states, and examples where these are
divided, are there. A cohort of C clients has C / n places on each of n devices, which are filled
step by step. No order changes a draw; it changes speed, and the order of floating-point sums.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.engine.cast import Row
from fedjax_mem.engine.setting import Setting


def blocks(population: int, devices: int) -> list[tuple[int, int]]:
  """Returns [first, last) of the clients of each device: blocks of N / n clients, rounded."""
  each, more = divmod(population, devices)
  ends = [(d + 1) * each + min(d + 1, more) for d in range(devices)]
  return list(zip([0, *ends[:-1]], ends, strict=True))


def home(ids: jax.Array, population: int, devices: int) -> jax.Array:
  """Returns the device to whose block each client belongs; `devices` for padding."""
  each, more = divmod(population, devices)
  larger = more * (each + 1)  # clients in blocks that have one more
  found = jnp.where(ids < larger, ids // (each + 1), more + (ids - larger) // max(each, 1))
  return jnp.where(ids < population, found, devices)


def at_home(row: Row, population: int, devices: int) -> Row:
  """Returns the rows [C] in an order in which clients run on the device that has their row.

  A device has C / devices places. If the rows of more clients than that are on it, the last of
  these clients run on other devices.

  Args:
    row: of the cohort; C is a multiple of the devices.
    population: N.
    devices: that the cohort, and the rows of the population, are cut into.
  """
  places = len(row.count) // devices
  where = home(row.client.id, population, devices)
  here = where[:, None] == jnp.arange(devices)[None]
  # How many earlier clients of the cohort have the same home.
  rank = jnp.where(here, jnp.cumsum(here, 0), 0).sum(1, dtype=jnp.int32) - 1
  stays = (where < devices) & (rank < places)
  taken = jnp.arange(places)[None] < here.sum(0)[:, None]
  # One sort orders the clients: first those without a place at home, padding at their end, then
  # those that stay, place by place. Another orders the places: free ones first, then those taken.
  # Both halves are equally long, so that the i-th client gets the i-th place.
  last = (where == devices).astype(jnp.int32)
  clients = jnp.argsort(jnp.where(stays, 2 + where * places + rank, last), stable=True)
  order = jnp.zeros_like(clients).at[jnp.argsort(taken.reshape(-1), stable=True)].set(clients)
  arranged: Row = jax.tree.map(lambda x: x[order], row)
  return arranged


def arrange(row: Row, chunk: int, devices: int) -> Row:
  """Returns the rows [C] in an order in which chunks have little padding and devices equal work.

  Sorted by their numbers of examples, clients of similar size share a chunk. The chunks are dealt
  to the devices in turn, first to last and then last to first, so that no device gets all the large
  ones.
  """
  capacity = row.count.shape[0]
  chunks = np.arange(capacity // chunk).reshape(-1, devices)
  chunks[1::2] = chunks[1::2, ::-1].copy()
  places = (chunks.T.reshape(-1, 1) * chunk + np.arange(chunk)).reshape(-1)
  order = jnp.argsort(-row.count, stable=True)[places]
  arranged: Row = jax.tree.map(lambda x: x[order], row)
  return arranged


def by_size(row: Row, devices: int) -> Row:
  """Returns the rows [C] with those of each device sorted by their numbers of examples.

  Clients of similar size then share a chunk.
  """
  device = jnp.arange(len(row.count)) * devices // len(row.count)
  order = jnp.lexsort((-row.count, device))
  ordered: Row = jax.tree.map(lambda x: x[order], row)
  return ordered


def arranged(setting: Setting, row: Row) -> Row:
  """Returns the rows [C] of a cohort in the order in which its clients run.

  The order changes no draw, only speed and the order of sums.
  """
  number, layout = setting.shape.num_clients, setting.layout
  if setting.apart or (setting.shape.equal and setting.divided):
    row = at_home(row, number, layout.devices)
    return row if setting.shape.equal else by_size(row, layout.devices)
  return row if setting.shape.equal else arrange(row, layout.chunk, layout.devices)


def moved(row: Row, population: int, devices: int) -> jax.Array:
  """Returns how many clients [C] run on another device than the one that has their examples."""
  here = jnp.arange(len(row.count)) // (len(row.count) // devices)
  away = row.client.real & (home(row.client.id, population, devices) != here)
  return away.sum(dtype=jnp.int32)
