"""Order statistics of every column of [C, D], over the rows that count, without a sort.

The bits of a float, its sign taken care of, are an integer in the order of the floats. So the k-th
smallest of a column is found by bisection: 32 counts of "not larger than", all columns side by side
in vector registers, a few columns at a time so that they stay in a core's cache. Ranks and the
number of rows that count may be known in the round only.

Rows that do not count are larger than everything, whatever they hold. Rows that count must be
finite. Equal values share: what the method takes a part of is the mean of the values that are tied,
so the order of rows changes nothing.

| edge case | result |
|---|---|
| no row counts | zeros |
| an even number of rows | the median is the mean of the two in the middle |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.kernels.loops import parts

_TOP = 0x7FFFFFFF
_LEAST, _MOST = np.int16(-(2**15)), np.int16(2**15 - 1)
_WIDTH = 128  # columns of a block on a CPU: found by trying, for 10 to 1,000 rows
_Block = Callable[[jax.Array, jax.Array], jax.Array]


def _keys(x: jax.Array) -> jax.Array:
  """Returns int32 in the order of the floats x, in the shape of x; its own inverse on the bits."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return jnp.where(bits < 0, bits ^ jnp.int32(_TOP), bits)


def _floats(keys: jax.Array) -> jax.Array:
  bits = jnp.where(keys < 0, keys ^ jnp.int32(_TOP), keys)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _counts(flags: jax.Array, dtype: jax.typing.DTypeLike = jnp.int32) -> jax.Array:
  return flags.astype(dtype).sum(0, dtype=dtype)


def _halved(keys: jax.Array, rank: jax.Array) -> jax.Array:
  """Returns the keys [B] of a rank, from 0, of every column of int16 keys [C, B]."""
  dtype = jnp.int16 if len(keys) < 2**15 else jnp.int32

  def halve(_, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    low, high = ends
    middle = (low & high) + ((low ^ high) >> 1)
    enough = _counts(keys <= middle[None], dtype) > rank.astype(dtype)
    return jnp.where(enough, low, middle + jnp.int16(1)), jnp.where(enough, middle, high)

  ends = jnp.full(keys.shape[1], _LEAST), jnp.full(keys.shape[1], _MOST)
  return jax.lax.fori_loop(0, 16, halve, ends)[1]


def _kth(keys: jax.Array, ranks: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
  """Returns the keys [B] of the given ranks, from 0, of every column of keys [C, B].

  First the upper halves of the bits, then, of those whose upper half is the one found, the lower:
  twice as many integers of 16 bits fit a vector register.
  """
  upper = (keys >> 16).astype(jnp.int16)
  lower = ((keys & 0xFFFF) - 2**15).astype(jnp.int16)
  found = []
  for rank in ranks:
    top = _halved(upper, rank)
    beyond = jnp.where(upper > top[None], _MOST, lower)
    bottom = _halved(jnp.where(upper < top[None], _LEAST, beyond), rank)
    found.append((top.astype(jnp.int32) << 16) | (bottom.astype(jnp.int32) + 2**15))
  return tuple(found)


def _blocks(f: _Block, x: jax.Array, on: jax.Array) -> jax.Array:
  """Returns f(block [C, B] of x, keys [C, B]) -> [B] of all columns, zeros if no row is `on`."""
  rows, size = x.shape
  on = on[:, None]

  def block(start: jax.Array, length: int) -> jax.Array:
    part = x if length == size else jax.lax.dynamic_slice(x, (0, start), (rows, length))
    part = part.astype(jnp.float32)
    return f(part, jnp.where(on, _keys(part), jnp.int32(_TOP)))

  if jax.default_backend() == 'cpu':
    found = parts.stream(block, size, 64, _WIDTH)
  else:
    found = block(jnp.int32(0), size)
  return jnp.where(on.any(), found, jnp.float32(0))


def median(x: jax.Array, on: jax.Array) -> jax.Array:
  """Returns the median of every column, [D] float32.

  Args:
    x: [C, D] floats.
    on: [C] booleans, the rows that count.
  """
  count = on.sum(dtype=jnp.int32)

  def block(part: jax.Array, keys: jax.Array) -> jax.Array:
    del part
    (low,) = _kth(keys, (jnp.maximum((count - 1) // 2, 0),))
    # The next one up, or the same again if more rows hold it.
    beyond = jnp.where(keys > low[None], keys, jnp.int32(_TOP)).min(0)
    high = jnp.where(_counts(keys <= low[None]) > count // 2, low, beyond)
    return _floats(low) * 0.5 + _floats(high) * 0.5

  return _blocks(block, x, on)


def trimmed_mean(x: jax.Array, on: jax.Array, trim: jax.typing.ArrayLike) -> jax.Array:
  """Returns the mean of every column without its `trim` smallest and largest values, [D] float32.

  Args:
    x: [C, D] floats.
    on: [C] booleans, the rows that count: more than 2 * trim of them.
    trim: values taken off on either side, >= 0.
  """
  count = on.sum(dtype=jnp.int32)
  trim = jnp.asarray(trim, jnp.int32)
  last = jnp.maximum(count - trim - 1, 0)
  kept = jnp.maximum(count - 2 * trim, 1)

  def block(part: jax.Array, keys: jax.Array) -> jax.Array:
    low, high = _kth(keys, (trim, last))
    inside = (keys > low[None]) & (keys < high[None])
    least, most = _floats(low), _floats(high)
    total = jnp.where(inside, part, jnp.float32(0)).sum(0)
    lows = _counts(keys <= low[None]) - trim
    highs = kept - lows - _counts(inside)
    ends = lows.astype(jnp.float32) * least + highs.astype(jnp.float32) * most
    # Of equal values nothing is added up, so that nothing is rounded.
    return jnp.where(low == high, least, (total + ends) / kept.astype(jnp.float32))

  return _blocks(block, x, on)


def smallest_sum(x: jax.Array, on: jax.Array, count: jax.typing.ArrayLike) -> jax.Array:
  """Returns the sum of the `count` smallest values of every column, [D] float32.

  Args:
    x: [C, D] floats.
    on: [C] booleans, the rows that count.
    count: values that are summed, at most as many as rows count; 0 gives zeros.
  """
  count = jnp.asarray(count, jnp.int32)

  def block(part: jax.Array, keys: jax.Array) -> jax.Array:
    (last,) = _kth(keys, (jnp.maximum(count - 1, 0),))
    below = keys < last[None]
    total = jnp.where(below, part, jnp.float32(0)).sum(0)
    ties = (count - _counts(below)).astype(jnp.float32)
    return jnp.where(count > 0, total + ties * _floats(last), jnp.float32(0))

  return _blocks(block, x, on)


def smallest(x: jax.Array, on: jax.Array, count: jax.typing.ArrayLike) -> jax.Array:
  """Returns shares [C, D] in [0, 1]: 1 for the `count` smallest of a column, 0 for the others.

  Values that are tied for the last places share them equally.

  Args:
    x: [C, D] floats, small: no blocks are made.
    on: [C] booleans, the rows that count.
    count: how many, at most as many as rows count.
  """
  keys = jnp.where(on[:, None], _keys(x.astype(jnp.float32)), jnp.int32(_TOP))
  count = jnp.asarray(count, jnp.int32)
  (last,) = _kth(keys, (jnp.maximum(count - 1, 0),))
  below, tied = keys < last[None], (keys == last[None]) & on[:, None]
  left = (count - _counts(below)).astype(jnp.float32)
  share = left / jnp.maximum(_counts(tied), 1).astype(jnp.float32)
  shares = jnp.where(below, jnp.float32(1), jnp.where(tied, share[None], jnp.float32(0)))
  return jnp.where(count > 0, shares, jnp.float32(0))


def mean_near(x: jax.Array, on: jax.Array, count: jax.typing.ArrayLike) -> jax.Array:
  """Returns the mean of the `count` values of every column nearest to its median, [D] float32.

  Args:
    x: [C, D] floats.
    on: [C] booleans, the rows that count.
    count: how many values, >= 1 and at most as many as rows count.
  """
  count = jnp.asarray(count, jnp.int32)
  rows = on.sum(dtype=jnp.int32)

  def block(part: jax.Array, keys: jax.Array) -> jax.Array:
    low, high = _kth(keys, (jnp.maximum((rows - 1) // 2, 0), rows // 2))
    middle = _floats(low) * 0.5 + _floats(high) * 0.5
    real = keys != jnp.int32(_TOP)
    far = jnp.where(real, _keys(jnp.abs(part - middle[None])), jnp.int32(_TOP))
    (last,) = _kth(far, (jnp.maximum(count - 1, 0),))
    near, tied = far < last[None], (far == last[None]) & real
    total = jnp.where(near, part, jnp.float32(0)).sum(0)
    left = (count - _counts(near)).astype(jnp.float32)
    ties = jnp.where(tied, part, jnp.float32(0)).sum(0)
    shared = ties / jnp.maximum(_counts(tied), 1).astype(jnp.float32)
    return (total + left * shared) / jnp.maximum(count, 1).astype(jnp.float32)

  return _blocks(block, x, on)
