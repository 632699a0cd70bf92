"""Sums over the devices of a mesh axis, added in the order of the devices.

`jax.lax.psum` leaves the order of its additions to the library that carries it out: four devices in
one process, in two and in four give sums that differ in their last bits. Here every device adds
what it has got from the others first to last, so a sum depends on the number of devices and not on
the processes, machines or networks between them. Sums of integers are exact in any order, and are
left to `psum`.

Short vectors are sent whole, to all: one message, D values from each of n devices. Long ones are
cut into n slices: each device gets one slice from all, adds it, and sends the sum to all. That is
what `psum` sends as well, 2 D values a device, and holds 3 D values for a moment instead of n D.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Tree

# Values that a device may hold of others to save a second message: a part of a CPU's cache.
_WHOLE = 1 << 18

# (sum so far [..., k], what the next device has [..., k]) -> their sum
Join = Callable[[jax.Array, jax.Array], jax.Array]


def total(part: Tree, axis: str) -> Tree:
  """Returns the sum of the trees of all devices, in the shapes and dtypes of one.

  Args:
    part: what this device has: arrays of floats or integers.
    axis: of the mesh, within a `shard_map`.
  """
  leaves, structure = jax.tree.flatten(part)
  groups: dict[Any, list[int]] = {}  # one message for each dtype
  for i, x in enumerate(leaves):
    groups.setdefault(x.dtype if rounds(x) else None, []).append(i)
  for kind, places in groups.items():
    mine = [leaves[i] for i in places]
    if kind is None:
      summed = jax.lax.psum(mine, axis)
    else:
      vector = joined(_vector(mine), axis, jnp.add)[0]
      ends = list(itertools.accumulate(x.size for x in mine))[:-1]
      cut = jnp.split(vector, ends)
      summed = [x.reshape(like.shape) for x, like in zip(cut, mine, strict=True)]
    for i, x in zip(places, summed, strict=True):
      leaves[i] = x
  return jax.tree.unflatten(structure, leaves)


def _vector(arrays: list[jax.Array]) -> jax.Array:
  """Returns the arrays, of one dtype, as one [1, D]."""
  flat = [x.reshape(1, -1) for x in arrays]
  return flat[0] if len(flat) == 1 else jnp.concatenate(flat, 1)


def joined(mine: jax.Array, axis: str, join: Join) -> jax.Array:
  """Returns the vectors [..., D] of all devices, joined in the order of the devices.

  Args:
    mine: what this device has, [..., D].
    axis: of the mesh, within a `shard_map`.
    join: acts on each of the D places by itself.
  """
  devices, size = jax.lax.axis_size(axis), mine.shape[-1]
  if devices * mine.size <= _WHOLE:
    return _in_order(jax.lax.all_gather(mine, axis), join)
  padded = jnp.pad(mine, [(0, 0)] * (mine.ndim - 1) + [(0, -size % devices)])
  slices = padded.reshape(*mine.shape[:-1], devices, -1)
  own = _in_order(jax.lax.all_to_all(slices, axis, mine.ndim - 1, 0), join)
  whole: jax.Array = jax.lax.all_gather(own, axis, axis=mine.ndim - 1)
  return whole.reshape(padded.shape)[..., :size]


def _in_order(parts: jax.Array, join: Join) -> jax.Array:
  """Returns parts[0], parts[1], … joined one after another."""

  def at(i: jax.typing.ArrayLike) -> jax.Array:
    part: jax.Array = jax.lax.dynamic_index_in_dim(parts, i, 0, False)
    return part

  def body(i: jax.Array, held: jax.Array) -> jax.Array:
    return join(held, at(i))

  summed: jax.Array = jax.lax.fori_loop(1, len(parts), body, at(0))
  return summed


def rounds(x: jax.Array | jax.ShapeDtypeStruct) -> bool:
  """Returns whether sums of such values are rounded."""
  return bool(jnp.issubdtype(x.dtype, jnp.inexact))
