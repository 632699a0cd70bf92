"""Checksums of arrays that do not depend on how they are divided over devices.

Each shard has one: the sum, modulo 2 ** 64, of its values' bits, each times an odd number that
follows from its place in the whole array. So those of all shards add up to that of the array,
however it was cut, and a shard that is lost, changed or in another's place shows.
"""

from typing import Any

import jax
import numpy as np

_PART = 1 << 18  # values at a time: their words and weights stay in the cache
_MODULUS = 1 << 64
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2 ** 64 / golden ratio
_HALF = np.uint64(29)


def of(array: Any) -> list[list[Any]]:
  """Returns [[first row, checksum], ...] of the shards of an array that this process answers for.

  Of equal copies on several devices one process answers for one. An array of the host is one shard.
  """
  if not isinstance(array, jax.Array):
    return [[0, _sum(np.asarray(array), (), np.shape(array))]]
  return [
    [_first(shard.index), _sum(np.asarray(shard.data), shard.index, array.shape)]
    for shard in array.addressable_shards
    if shard.replica_id == 0
  ]


def total(shards: list[list[Any]]) -> int:
  """Returns the checksum of a whole array from those of its shards."""
  return int(sum(number for _, number in shards)) % _MODULUS


def _first(index: tuple[slice, ...]) -> int:
  return (index[0].start or 0) if index else 0


def _sum(x: np.ndarray, index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
  """Returns the checksum of a part of an array of this shape, which lies at `index` in it."""
  if not x.size:
    return 0
  begins = [s.start or 0 for s in index] or [0] * len(shape)
  words = np.ascontiguousarray(x).reshape(-1)
  if words.dtype == np.bool_ or words.dtype.itemsize not in (1, 2, 4, 8):
    words = words.view(np.uint8).reshape(x.size, -1).astype(np.uint64) @ _bytes(x.dtype.itemsize)
  else:
    words = words.view(f'u{words.dtype.itemsize}')
  summed = 0
  for start in range(0, len(words), _PART):
    part = words[start : start + _PART].astype(np.uint64)
    place = _places(start, len(part), x.shape, begins, shape)
    weight = (place + np.uint64(1)) * _ODD
    weight ^= weight >> _HALF
    weight |= np.uint64(1)
    summed += int(((part + _ODD) * weight).sum(dtype=np.uint64))
  return summed % _MODULUS


def _bytes(size: int) -> np.ndarray:
  """Returns odd weights of the bytes of a value whose size is no power of two, or above eight."""
  weights: np.ndarray = (np.arange(size, dtype=np.uint64) * np.uint64(2) + np.uint64(1)) * _ODD
  return weights


def _places(
  start: int, count: int, part: tuple[int, ...], begins: list[int], whole: tuple[int, ...]
) -> np.ndarray:
  """Returns the places in the whole array of `count` values of a part, from `start` on."""
  flat = np.arange(start, start + count, dtype=np.uint64)
  if part == whole:
    return flat
  if part[1:] == whole[1:]:  # whole rows
    return flat + np.uint64(begins[0] * int(np.prod(whole[1:], dtype=np.int64)))
  place = np.zeros(count, np.uint64)
  for where, begin, size in zip(
    np.unravel_index(flat.astype(np.int64), part), begins, whole, strict=True
  ):
    place = place * np.uint64(size) + (where + begin).astype(np.uint64)
  return place
