"""Sums over the devices of a mesh axis, added in the order of the devices.

`jax.lax.psum` leaves the order of its additions to the library that carries it out: four devices in
one process, in two and in four give sums that differ in their last bits. Here every device adds
what it has got from the others first to last, so a sum depends on the number of devices and not on
the processes, machines or networks between them. Sums of integers are exact in any order, and are
left to `psum`.

Of messages that do not depend on each other, a CPU may carry out one first here, and another first
in another process, where one of them is in a loop: what arrives is then not what is expected. So
each message is made to depend on the one before (`after`).

Short vectors are sent whole, to all: one message, D values from each of n devices. Long ones are
cut into n slices: each device gets one slice from all, adds it, and sends the sum to all. That is
what `psum` sends as well, 2 D values a device, and holds 3 D values for a moment instead of n D.
"""

import itertools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from fedjax_mem.core import Tree

T = TypeVar('T')

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
    groups.setdefault(x.dtype, []).append(i)
  summed = jnp.zeros(0)
  for kind, places in groups.items():
    mine = after(_vector([leaves[i] for i in places]), summed)
    exact = not rounds(jax.ShapeDtypeStruct((), kind))
    summed = jax.lax.psum(mine, axis) if exact else joined(mine, axis, jnp.add)
    ends = list(itertools.accumulate(leaves[i].size for i in places))[:-1]
    for i, x in zip(places, jnp.split(summed[0], ends), strict=True):
      leaves[i] = x.reshape(leaves[i].shape)
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


def after(x: T, before: Tree) -> T:
  """Returns the arrays, which the compiler computes after `before`, a tree, or nothing.

  They stay as they are: 0 is added to their bits, as the lowest bit of t (t + 1), which is even for
  every t, as no compiler knows. A barrier does not last: XLA's CPU back end drops it.
  """
  held = [y for y in jax.tree.leaves(before) if y.size]
  if not held:
    return x
  first = held[0].reshape(-1)[:1]
  t = _words(first)[0]
  zero = (t * (t + 1)) & 1

  def one(y: jax.Array) -> jax.Array:
    if not y.size:
      return y
    return _unworded(_words(y) + zero, y)

  late: T = jax.tree.map(one, x)
  return late


def gathered(rows: Tree, axis: str, before: Tree = ()) -> Tree:
  """Returns the rows [k, ...] of all devices, [n k, ...], on each, to the bit, by one message.

  Args:
    rows: arrays of any dtypes, with one leading axis.
    axis: of the mesh, within a `shard_map`.
    before: of an earlier message, after which this one is sent.
  """
  leaves, structure = jax.tree.flatten(rows)
  if not leaves:
    return rows
  words = [jax.vmap(_words)(x) for x in leaves]
  mine = after(jnp.concatenate(words, 1), before)
  whole = jax.lax.all_gather(mine, axis, tiled=True)
  ends = list(itertools.accumulate(x.shape[1] for x in words))[:-1]
  cut = jnp.split(whole, ends, 1)
  like = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in leaves]
  back = [jax.vmap(lambda w, y=y: _unworded(w, y))(x) for x, y in zip(cut, like, strict=True)]
  return jax.tree.unflatten(structure, back)


def only(on: jax.Array, values: Tree, axis: str) -> Tree:
  """Returns on all devices the values of the one device that is `on`, to the bit, or zeros of none.

  They go as one vector of words, to which all others add zeros: -0.0 + 0.0 would be 0.0.

  Args:
    on: bool scalar, true on at most one device.
    values: arrays of any dtypes.
    axis: of the mesh, within a `shard_map`.
  """
  leaves, structure = jax.tree.flatten(values)
  words = [_words(x) for x in leaves]
  mine = jnp.concatenate([jnp.zeros(0, jnp.uint32), *words])
  whole = jax.lax.psum(jnp.where(on, mine, jnp.uint32(0)), axis)
  ends = list(itertools.accumulate(len(x) for x in words))[:-1]
  cut = jnp.split(whole, ends) if words else []
  return jax.tree.unflatten(structure, map(_unworded, cut, leaves))


def _words(x: jax.Array) -> jax.Array:
  """Returns the bits of an array as uint32 words; the last is filled up with zeros."""
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    return jnp.concatenate([_words(x.real), _words(x.imag)])
  narrow = _bytes_of(x)
  if narrow.dtype.itemsize >= 4:
    return jax.lax.bitcast_convert_type(narrow, jnp.uint32).reshape(-1)
  each = 4 // narrow.dtype.itemsize
  flat = jnp.pad(narrow.reshape(-1), (0, -narrow.size % each))
  return jax.lax.bitcast_convert_type(flat.reshape(-1, each), jnp.uint32)


def _bytes_of(x: jax.Array) -> jax.Array:
  """Returns the array in a dtype of whole bytes, which has all of its values."""
  if x.dtype == jnp.bool_ or jnp.dtype(x.dtype).name in ('int4', 'uint4', 'int2', 'uint2'):
    return x.astype(jnp.int8)
  return x


def _unworded(words: jax.Array, like: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
  """Returns the array of the shape and dtype of `like` that `_words` made these of."""
  if jnp.issubdtype(like.dtype, jnp.complexfloating):
    half = len(words) // 2
    real = jax.eval_shape(jnp.real, like)
    return jax.lax.complex(_unworded(words[:half], real), _unworded(words[half:], real))
  narrow = jax.eval_shape(_bytes_of, like)
  size = narrow.dtype.itemsize
  if size >= 4:
    shape = (*like.shape, size // 4) if size > 4 else like.shape
    back = jax.lax.bitcast_convert_type(words.reshape(shape), narrow.dtype)
  else:
    flat = jax.lax.bitcast_convert_type(words, narrow.dtype).reshape(-1)
    back = flat[: like.size].reshape(like.shape)
  return back.astype(like.dtype)


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
