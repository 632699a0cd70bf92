"""Order statistics of every column of [C, D] over some of the rows, without a sort.

The rows are clients, the columns coordinates: few rows, very many columns. A float's bits can be
turned into a signed integer in the same order (`_keys`). The k-th smallest of a column is then
found by bisection on the value: each step counts the keys that are not larger than the middle. The
steps are the same for every column, so that columns fill vector registers; XLA's sort takes one
column after another. A block of columns at a time stays in a core's cache. The number of rows that
count, and ranks, may be traced values: they are never shapes.

Worked example: the median of one column with the values 3, -1, 2, and a fourth row that does not
count.

>>> x, on = jnp.array([[3.0], [-1.0], [2.0], [9.0]]), jnp.array([True, True, True, False])
>>> _keys(x[:, 0]).tolist()
[1077936128, -1065353217, 1073741824, 1091567616]
>>> median(x, on).tolist()
[2.0]

Rows that do not count are larger than everything, whatever they hold. Rows that count must be
finite. Tied values share: where only some of the values that are tied belong to a result, each of
them enters with the same share. So the order of rows does not matter. What was computed, like a
distance, is tied up to rounding.

| edge case | result |
|---|---|
| no row counts | zeros |
| an even number of rows | the median is the mean of the two in the middle |
| values whose sum is beyond float32 | means are right: large ones are made smaller first |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import platforms
from fedjax_mem.kernels.loops import parts

_MAGNITUDE_BITS = 0x7FFFFFFF  # all bits of a float32 but the sign
_ABSENT_KEY = 0x7FFFFFFF  # the key of rows that do not count: the largest int32, above infinity's
_INT16_MIN, _INT16_MAX = np.int16(-(2**15)), np.int16(2**15 - 1)
ROUNDING = 1e-5  # values that differ by so much of them may be equal but for rounding
_WIDTH = 128  # columns of a block on a CPU: found by trying, for 10 to 1,000 rows
_BLOCK_MULTIPLE = 64  # blocks begin at multiples of so many columns
_Block = Callable[[jax.Array, jax.Array], jax.Array]


def _keys(x: jax.Array) -> jax.Array:
  """Returns int32 keys in the order of the floats x, in the shape of x; -0 comes before 0.

  >>> _keys(jnp.array([-2.0, -1.0, 0.0, 1.0])).tolist()
  [-1073741825, -1065353217, 0, 1065353216]
  """
  # Floats are sign and magnitude, integers two's complement: for negative floats, a larger
  # magnitude has the larger bits but must have the smaller key. Flipping all bits but the sign
  # reverses their order.
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return jnp.where(bits < 0, bits ^ jnp.int32(_MAGNITUDE_BITS), bits)


def _floats(keys: jax.Array) -> jax.Array:
  """Returns the floats of keys: the inverse of `_keys`, which is the same flip."""
  bits = jnp.where(keys < 0, keys ^ jnp.int32(_MAGNITUDE_BITS), keys)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _counts(flags: jax.Array, dtype: jax.typing.DTypeLike = jnp.int32) -> jax.Array:
  """Returns the number of true flags [C, B] in each column, [B]."""
  return flags.astype(dtype).sum(0, dtype=dtype)


def _bisect(keys: jax.Array, rank: jax.Array) -> jax.Array:
  """Returns the key [B] of a rank, from 0, in every column of int16 keys [C, B].

  Args:
    keys: [C, B] int16.
    rank: int32 scalar, below C.
  """
  # Counts up to 2 ** 15 - 1 fit 16 bits, and then comparisons and counts have vectors of one width.
  dtype = jnp.int16 if len(keys) < 2**15 else jnp.int32

  def bisect(_: jax.Array | int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    # The answer is the smallest value that more than `rank` keys do not exceed. For the keys 5, 7,
    # 9 and rank 1 it is 7: two keys are <= 7, but only one is <= 6.
    low, high = ends
    # The mean rounded down, without a sum that overflows: common bits, plus half of the others.
    middle = (low & high) + ((low ^ high) >> 1)
    enough = _counts(keys <= middle[None], dtype) > rank.astype(dtype)
    return jnp.where(enough, low, middle + jnp.int16(1)), jnp.where(enough, middle, high)

  # 16 halvings of 2 ** 16 values leave one.
  ends = jnp.full(keys.shape[1], _INT16_MIN), jnp.full(keys.shape[1], _INT16_MAX)
  found: jax.Array = jax.lax.fori_loop(0, 16, bisect, ends)[1]
  return found


def _kth(keys: jax.Array, ranks: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
  """Returns the keys [B] of each of the ranks, in every column of keys [C, B].

  >>> keys = jnp.array([[0x00010005], [0x00010002], [0x00020000]])
  >>> [hex(key[0]) for key in _kth(keys, (jnp.int32(0), jnp.int32(1), jnp.int32(2)))]
  ['0x10002', '0x10005', '0x20000']

  Args:
    keys: [C, B] int32.
    ranks: int32 scalars, each in [0, C): 0 is the smallest.
  """
  # The upper 16 bits first, then the lower 16 among the keys that have the upper ones found: a
  # vector register holds twice as many integers of 16 bits as of 32.
  upper = (keys >> 16).astype(jnp.int16)
  # The lower bits are unsigned; less 2 ** 15 they are an int16 in the same order.
  lower = ((keys & 0xFFFF) - 2**15).astype(jnp.int16)
  found = []
  for rank in ranks:
    top = _bisect(upper, rank)
    # Keys with other upper bits go to the ends, below or above all others, so that the rank stays
    # what it is. Example, rank 1: the upper bits are 1, 1, 2, and top is 1; the lower bits become
    # 5, 2, maximum, and the one of rank 1 is 5.
    beyond = jnp.where(upper > top[None], _INT16_MAX, lower)
    bottom = _bisect(jnp.where(upper < top[None], _INT16_MIN, beyond), rank)
    found.append((top.astype(jnp.int32) << 16) | (bottom.astype(jnp.int32) + 2**15))
  return tuple(found)


def _blocks(f: _Block, x: jax.Array, on: jax.Array) -> jax.Array:
  """Returns f of all columns, [D], zeros if no row counts.

  Args:
    f: (block [C, B] of x as float32, its keys [C, B]) -> [B].
    x: [C, D] floats.
    on: [C] booleans, the rows that count.
  """
  rows, size = x.shape
  on = on[:, None]

  def block(start: jax.Array, length: int) -> jax.Array:
    part = x if length == size else jax.lax.dynamic_slice(x, (0, start), (rows, length))
    part = part.astype(jnp.float32)
    return f(part, jnp.where(on, _keys(part), jnp.int32(_ABSENT_KEY)))

  # Elsewhere than on a CPU all columns at once: a loop would leave most of the device idle.
  found: jax.Array
  if platforms.current() == 'cpu':
    found = parts.stream(block, size, _BLOCK_MULTIPLE, _WIDTH)
  else:
    found = block(jnp.int32(0), size)
  return jnp.where(on.any(), found, jnp.float32(0))


def _finite(f: _Block, x: jax.Array, on: jax.Array) -> jax.Array:
  """Returns f of all columns, as `_blocks`, for an f of finite values whose sums may not be finite.

  Args:
    f: a mean of values of each column, whatever their unit.
    x: [C, D] floats.
    on: [C] booleans, the rows that count.
  """
  found = _blocks(f, x, on)
  # Once more, made smaller, only where it is needed: a product for each value doubles the time.
  small = jnp.float32(2.0 ** -len(x).bit_length())
  again = lambda: _blocks(f, x.astype(jnp.float32) * small, on) / small
  whole: jax.Array = jax.lax.cond(jnp.isfinite(found).all(), lambda: found, again)
  return whole


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
    # The upper of the two in the middle needs no second bisection: it is the next larger key, or
    # the same key if enough rows hold it. For an odd count the two are one row, of rank count // 2.
    beyond = jnp.where(keys > low[None], keys, jnp.int32(_ABSENT_KEY)).min(0)
    high = jnp.where(_counts(keys <= low[None]) > count // 2, low, beyond)
    # Halved before the sum, which could overflow.
    return _floats(low) * 0.5 + _floats(high) * 0.5

  return _blocks(block, x, on)


def trimmed_mean(x: jax.Array, on: jax.Array, trim: jax.typing.ArrayLike) -> jax.Array:
  """Returns the mean of every column without its `trim` smallest and largest values, [D] float32.

  >>> x = jnp.array([[1.0], [2.0], [2.0], [5.0], [50.0]])
  >>> trimmed_mean(x, jnp.ones(5, bool), 1).tolist()
  [3.0]

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
    # The smallest and the largest value kept; in the example 2 and 5.
    low, high = _kth(keys, (trim, last))
    inside = (keys > low[None]) & (keys < high[None])
    least, most = _floats(low), _floats(high)
    total = jnp.where(inside, part, jnp.float32(0)).sum(0)
    # Values strictly between are summed; those at the two ends are counted and multiplied, since
    # trimming may take some of several that are equal. In the example: two at 2, one at 5.
    lows = _counts(keys <= low[None]) - trim
    highs = kept - lows - _counts(inside)
    ends = lows.astype(jnp.float32) * least + highs.astype(jnp.float32) * most
    # Where all that is kept is equal, nothing is added up, so that nothing is rounded.
    return jnp.where(low == high, least, (total + ends) / kept.astype(jnp.float32))

  return _finite(block, x, on)


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
    # The rest of the count is values equal to the last one.
    ties = (count - _counts(below)).astype(jnp.float32)
    return jnp.where(count > 0, total + ties * _floats(last), jnp.float32(0))

  return _blocks(block, x, on)


def smallest(
  x: jax.Array, on: jax.Array, count: jax.typing.ArrayLike, rounding: float = ROUNDING
) -> jax.Array:
  """Returns shares [C, D] in [0, 1]: 1 for the `count` smallest of a column, 0 for the others.

  Values that are tied for the last places share them equally.

  >>> x = jnp.array([[1.0], [2.0], [2.0], [3.0]])
  >>> smallest(x, jnp.ones(4, bool), 2)[:, 0].tolist()
  [1.0, 0.5, 0.5, 0.0]

  Args:
    x: [C, D] floats, few columns: they are not divided into blocks.
    on: [C] booleans, the rows that count.
    count: how many, at most as many as rows count.
    rounding: values are tied with the last one if they differ from it by so much of it.
  """
  keys = jnp.where(on[:, None], _keys(x.astype(jnp.float32)), jnp.int32(_ABSENT_KEY))
  count = jnp.asarray(count, jnp.int32)
  (last,) = _kth(keys, (jnp.maximum(count - 1, 0),))
  edge = _floats(last)[None]
  near = jnp.where(jnp.isfinite(edge), jnp.abs(edge) * rounding, 0)
  below = (x < edge - near) & on[:, None]
  tied = (x <= edge + near) & on[:, None] & ~below
  left = (count - _counts(below)).astype(jnp.float32)
  share = left / jnp.maximum(_counts(tied), 1).astype(jnp.float32)
  shares = jnp.where(below, jnp.float32(1), jnp.where(tied, share[None], jnp.float32(0)))
  return jnp.where(count > 0, shares, jnp.float32(0))


def mean_near(
  x: jax.Array, on: jax.Array, count: jax.typing.ArrayLike, merged: jax.Array | None = None
) -> jax.Array:
  """Returns the mean of the `count` values of every column nearest to its median, [D] float32.

  Args:
    x: [C, D] floats.
    on: [C] booleans, the rows that count.
    count: how many values, >= 1 and at most as many as rows count.
    merged: [C] booleans, rows that are replaced by their mean first; some of them may count.
  """
  count = jnp.asarray(count, jnp.int32)
  rows = on.sum(dtype=jnp.int32)

  def block(part: jax.Array, keys: jax.Array) -> jax.Array:
    if merged is not None:
      share = merged.astype(jnp.float32) / jnp.maximum(_counts(merged), 1).astype(jnp.float32)
      part = jnp.where(merged[:, None], (part * share[:, None]).sum(0)[None], part)
      keys = jnp.where(on[:, None], _keys(part), jnp.int32(_ABSENT_KEY))
    low, high = _kth(keys, (jnp.maximum((rows - 1) // 2, 0), rows // 2))
    middle = _floats(low) * 0.5 + _floats(high) * 0.5
    real = keys != jnp.int32(_ABSENT_KEY)
    # The same selection once more, on the distances from the median. Two values at the same
    # distance, one on either side, are tied: the mean of all that are tied enters for each.
    far = jnp.where(real, _keys(jnp.abs(part - middle[None])), jnp.int32(_ABSENT_KEY))
    (last,) = _kth(far, (jnp.maximum(count - 1, 0),))
    # Differences of values are rounded as the values are.
    largest = jnp.where(real, jnp.abs(part), 0).max(0)
    edge, room = _floats(last), largest * 2.0**-21
    near = real & (_floats(far) < (edge - room)[None])
    tied = real & ~near & (_floats(far) <= (edge + room)[None])
    total = jnp.where(near, part, jnp.float32(0)).sum(0)
    left = (count - _counts(near)).astype(jnp.float32)
    ties = jnp.where(tied, part, jnp.float32(0)).sum(0)
    shared = ties / jnp.maximum(_counts(tied), 1).astype(jnp.float32)
    return (total + left * shared) / jnp.maximum(count, 1).astype(jnp.float32)

  return _finite(block, x, on)
