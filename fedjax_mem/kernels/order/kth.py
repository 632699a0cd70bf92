"""The k-th largest magnitude of a vector, exactly, by counting instead of sorting.

Method: radix selection on the bit patterns of the floats, narrowed first by a sample (as in the
SELECT algorithm of Floyd & Rivest, 1975).

1. The bits of |x|, read as an integer, are in the same order as |x|. They are the `keys`.
2. A sample of the keys gives a range that very likely contains the k-th largest key (`_range`).
3. One pass over all keys counts those above the range and collects those inside (`_within`).
4. Counts per bin, the highest bits first, find the k-th key among those collected (`_select`).

An unusual sample only costs time, never correctness: if the k-th key is not in the range, or the
range holds too many keys, step 4 runs over all keys. Integers are compared and added, never
floats, so every platform returns the same bits.

A sort would order all D values, although only one position is asked for.

Worked example: the second largest magnitude of 3, -1, 2.

>>> x = jnp.array([3.0, -1.0, 2.0])
>>> [hex(key) for key in keys(x).tolist()]
['0x40400000', '0x3f800000', '0x40000000']

With 11 of the 31 bits per pass, the first pass counts the bins key >> 20:

>>> [hex(key >> 20) for key in keys(x).tolist()]
['0x404', '0x3f8', '0x400']

From the top, bin 0x404 holds one key and bin 0x400 another: the second largest is in bin 0x400, as
the largest key there. Two more passes, over the next 11 bits and the last 9, give all of its bits:

>>> hex(kth(x, 2).key), hex(keys(jnp.float32(2)))
('0x40000000', '0x40000000')
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.kernels.loops import parts

# The key of every NaN: one more than the bits of infinity, 0x7F800000.
NAN_KEY = 0x7F800001
# Marks an empty place in a vector of keys. Real keys are at most NAN_KEY, so this value minus the
# start of a range exceeds 2 ** 31: it lies outside any range of up to 31 bits.
_ABSENT_KEY = 0xFFFFFFFF
# The sample takes 1 in `_SAMPLE_RATIO` values, as runs of `_RUN` neighbours (one cache line of
# float32). A sample has LEAST to _MOST_SAMPLED values; vectors of up to LEAST values have none.
_SAMPLE_RATIO, _RUN, LEAST, _MOST_SAMPLED = 32, 16, 1 << 14, 1 << 16
# The sample is counted in bins of 2 ** LOW keys: the lowest LOW bits are ignored.
LOW = 17
# The range extends by so many standard deviations of the sampled rank to either side. The deviation
# is that of independent draws; runs are not quite, so 6 leaves a reserve.
_DEVIATIONS = 6
# Bits of a key resolved in one pass: over few keys, clearing a table of counts would dominate, so
# it has 2 ** 11 entries; over all keys, passes dominate, so it has 2 ** 16.
_FEW_BITS, _ALL_BITS = 11, 16
# Consecutive values that go to different words of flags, so that one vector instruction serves all.
LANES = 16
BLOCK = 32 * LANES  # values whose flags fill LANES words of 32 bits
SLOTS = 1 << 13  # set bits that one turn of the loop in `each_set` handles
# Prefix sums: length of a row, and the size up to which a vector is a single row.
_ROW, _SINGLE_ROW = 8, 1 << 7


class Kth(NamedTuple):
  """The k-th largest key, and how its ties are to be split.

  Example: of the keys 5, 3, 3, 3 with k = 2, the key is 3, one of the three is among the k
  (`ties_kept`), and the other two are not (`ties_cut`).

  Attributes:
    key: uint32 scalar.
    ties_kept: int32 scalar, how many of the keys that equal it are among the k, at least 1.
    ties_cut: bool scalar, whether some of the keys that equal it are not among the k.
  """

  key: jax.Array
  ties_kept: jax.Array
  ties_cut: jax.Array


def keys(x: jax.Array) -> jax.Array:
  """Returns uint32 keys in the order of the magnitudes of x, in the shape of x.

  An IEEE 754 float stores the sign, then the exponent, then the mantissa. Without the sign, a
  larger magnitude has a larger bit pattern, subnormal numbers included.

  Args:
    x: floats of any shape; narrower types than float32 are converted, which is exact.
  """
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  # The mask drops the sign. The minimum makes all NaNs one key, above infinity.
  return jnp.minimum(bits & jnp.uint32(0x7FFFFFFF), jnp.uint32(NAN_KEY))


def before(values: jax.Array) -> jax.Array:
  """Returns the exclusive prefix sum of int32 values [N]: for each, the sum of those before it.

  Not `jnp.cumsum`: on a CPU, XLA vectorises sums over rows and small triangles, but not a scan.

  >>> before(jnp.array([3, 1, 4, 1])).tolist()
  [0, 3, 4, 8]
  """
  length = _ROW if values.size > _SINGLE_ROW else values.size
  rows = jnp.pad(values, (0, -values.size % length)).reshape(-1, length)
  # Within a row: sums under a triangular mask, length ** 2 additions but all of them independent.
  place = jax.lax.iota(jnp.int32, length)
  earlier = (place[None] < place[:, None])[None]
  sums = jnp.sum(jnp.where(earlier, rows[:, None], 0), axis=2, dtype=jnp.int32)
  if values.size > _SINGLE_ROW:
    # Across rows: the same for the rows' totals, an eighth as many; for 10 ** 6 values 5 times.
    sums += before(rows.sum(1, dtype=jnp.int32))[:, None]
  return sums.reshape(-1)[: values.size]


def each_set(
  words: jax.Array, out: jax.Array, f: Callable[[jax.Array, jax.Array], jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Returns (out [N] with f of every set bit written to it in order, number of set bits).

  It does what `jnp.nonzero` does, but in O(W + N): 32 flags at a time, rather than all D of them.

  >>> words = jnp.array([0b0101, 0, 0b1000], jnp.uint32)
  >>> out, total = each_set(words, jnp.full(4, -1), lambda word, bit: 32 * word + bit)
  >>> out.tolist(), int(total)
  ([0, 2, 67, -1], 3)

  Args:
    words: [W] uint32, not empty.
    out: [N]. With more than N set bits, the first N are written; with fewer, the rest of out stays.
    f: (indices of words int32 [M], bit positions 0 … 31 int32 [M]) -> [M] in the dtype of out.
  """
  # In the example: sizes 2, 0, 1; starts 0, 2, 2; ends 2, 2, 3.
  sizes = jax.lax.population_count(words).astype(jnp.int32)
  starts = before(sizes)
  ends = starts + sizes
  total = ends[-1]
  # The word of output slot s is the number of words that end at or before s. So: count the ends at
  # each slot (0, 0, 2, 1) and take the inclusive prefix sum (0, 0, 2, 3). Slots 0 and 1 belong to
  # word 0, slot 2 to word 2; slot 3 is beyond the total and is not written.
  ended = jnp.zeros(out.size + -out.size % _SINGLE_ROW, jnp.int32).at[ends].add(1, mode='drop')
  word = before(ended) + ended
  part = min(SLOTS, out.size)

  def step(i: jax.Array, out: jax.Array) -> jax.Array:
    # The last part is moved back to end with out: slots that overlap are written twice, alike.
    start = jnp.minimum(i * part, out.size - part)
    slots = start + jax.lax.iota(jnp.int32, part)
    where = parts.take(word, start, part)
    values = f(where, _nth_bit(words[where], slots - starts[where]))
    values = jnp.where(slots < total, values, parts.take(out, start, part))
    return jax.lax.dynamic_update_slice(out, values, (start,))

  # A loop even for one turn: its inputs are then written to memory once. Otherwise XLA fuses their
  # computation into each place where they are used, and repeats it there.
  turns = (jnp.minimum(total, out.size) + (part - 1)) // part
  return jax.lax.fori_loop(0, turns, step, out), total


def _nth_bit(words: jax.Array, rank: jax.Array) -> jax.Array:
  """Returns the position, 0 … 31, of the set bit of each uint32 that has `rank` set bits below it.

  A binary search by population counts: 5 steps, where a loop over the bits would take 32.

  >>> _nth_bit(jnp.array([0b10010100], jnp.uint32), jnp.array([1])).tolist()
  [4]
  """
  # In the example, the lowest 16 and 8 bits hold 3 > 1 set bits: stay. The lowest 4 hold 1: skip
  # them, with rank 0 left. Bits 4 and 5 hold 1 > 0, and so does bit 4: the position is 4.
  place = jnp.zeros_like(rank)
  for width in (16, 8, 4, 2, 1):
    part = (words >> place.astype(jnp.uint32)) & jnp.uint32(2**width - 1)
    count = jax.lax.population_count(part).astype(jnp.int32)
    beyond = rank >= count
    rank = jnp.where(beyond, rank - count, rank)
    place = jnp.where(beyond, place + width, place)
  return place


def _suffix(counts: jax.Array, rank: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (bin that holds the key of a rank, its rank within the bin, the bin's count).

  Ranks count from the largest key, starting at 1; the highest bin holds the largest keys.

  >>> [int(n) for n in _suffix(jnp.array([1, 0, 2, 3]), jnp.int32(4))]
  [2, 1, 2]

  Args:
    counts: int32 [2 ** n], keys in each bin.
    rank: int32 scalar.
  """
  # Two levels, rows and then one row: the prefix sums are over about sqrt(bins) values each.
  side = 2 ** (counts.size.bit_length() // 2)
  rows = counts.reshape(-1, side)

  def last(values: jax.Array, rank: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Sums from each bin up, decreasing: the bin is the last one whose sum reaches the rank. In the
    # example, for all four bins at once: 6, 5, 5, 3; the last that reaches 4 is bin 2.
    from_here = jnp.cumsum(values[::-1])[::-1]
    i = jnp.sum(from_here >= rank, dtype=jnp.int32) - 1
    return i, rank - (from_here[i] - values[i])

  row, rank = last(rows.sum(1, dtype=jnp.int32), rank)
  column, rank = last(rows[row], rank)
  return (row * side + column).astype(jnp.uint32), rank, rows[row, column]


_Narrowed = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _select(
  vectors: list[jax.Array], low: jax.Array, bits: jax.Array, rank: jax.Array, step: int
) -> Kth:
  """Returns the key of a rank among those in [low, low + 2 ** bits).

  Args:
    vectors: keys (uint32) or the floats that have them; keys outside of the range do not count.
    low: uint32 scalar.
    bits: int32 scalar, 1 … 31.
    rank: int32 scalar, from 1 (the largest) to the number of keys in the range.
    step: bits of a key that one pass resolves.
  """

  def narrower(state: _Narrowed) -> _Narrowed:
    low, bits, rank, _ = state
    rest = jnp.maximum(bits - step, 0)

    def add(counts: jax.Array, part: jax.Array) -> jax.Array:
      # Unsigned: a key below `low` wraps around to a large number, so one comparison tests both
      # ends of the range.
      above = (part if part.dtype == jnp.uint32 else keys(part)) - low
      inside = above >> bits.astype(jnp.uint32) == 0
      # A key outside adds 0 to bin 0: every index is in bounds, and no bounds are checked.
      where = jnp.where(inside, above >> rest.astype(jnp.uint32), jnp.uint32(0))
      return counts.at[where].add(inside.astype(jnp.int32), mode='promise_in_bounds')

    counts = jnp.zeros(1 << step, jnp.int32)
    for x in vectors:
      counts = parts.fold(add, counts, x)
    i, rank, equal = _suffix(counts, rank)
    return low + (i << rest.astype(jnp.uint32)), rest, rank, equal

  # Once no bits are left, a bin is a single key: the rank within it splits its ties.
  state = low, bits, rank, jnp.int32(0)
  low, _, rank, equal = jax.lax.while_loop(lambda state: state[1] > 0, narrower, state)
  return Kth(low, rank, equal > rank)


def _sample(x: jax.Array) -> jax.Array:
  """Returns a sample of x [D]: runs of neighbours, evenly spaced over all of it."""
  size = min(_MOST_SAMPLED, max(LEAST, x.size // _SAMPLE_RATIO))
  # An odd distance: for D = 2 ** 20 it is 511. With 512, and x a flattened matrix of 512 columns,
  # all runs would be of the same 16 columns.
  step = (_RUN * x.size // size - 1) | 1
  count = x.size // step
  return x[: count * step].reshape(count, step)[:, :_RUN].reshape(-1)


def _range(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array, int]:
  """Returns (low, high, room): the k-th largest key is likely in [low, high), with few others.

  The number of sampled keys among the k largest is binomial, with the mean k n / D for a sample of
  n. Example: D = 10 ** 6, k = 10 ** 4, n = 31,296: the mean is 313 and the margin 107, so that the
  range reaches from the 420th to the 206th largest of the sample.

  Args:
    x: [D] floats.
    k: the rank, in [1, D].

  Returns:
    low, high: uint32 scalars.
    room: keys that the range should hold at most; more are treated as a failure of the sample.
  """
  sample = _sample(x)
  share = k / x.size
  expected = round(share * sample.size)
  margin = math.ceil(_DEVIATIONS * math.sqrt(share * (1 - share) * sample.size)) + 1
  # Whole bins of 2 ** LOW keys: a table of 2 ** 14 counts, in one pass over the sample.
  bins = keys(sample) >> LOW
  counts = jnp.zeros(1 << (31 - LOW), jnp.int32).at[bins].add(1, mode='promise_in_bounds')
  ranks = jnp.array([expected + margin, expected - margin], jnp.int32)
  low, last = jax.vmap(_suffix, (None, 0))(counts, jnp.clip(ranks, 1, sample.size))[0]
  # Where a rank leaves the sample, the range is open: k near D or near 1.
  low = low << LOW if expected + margin <= sample.size else jnp.uint32(0)
  high = (last + 1) << LOW if expected - margin >= 1 else jnp.uint32(NAN_KEY + 1)
  # The margins scaled up to D, and a reserve for what else falls into the bins at both ends.
  room = 2 * margin * x.size // sample.size + x.size // 128 + 1024
  return low, high, min(x.size, room)


def _sides(key: jax.Array, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (whether the keys are in [low, high), whether they are above)."""
  # Unsigned: below `low` the difference wraps around and is large.
  return key - low < high - low, key >= high


def _within(
  x: jax.Array, low: jax.Array, high: jax.Array, room: int
) -> tuple[list[jax.Array], jax.Array, jax.Array, jax.Array]:
  """Returns (vectors of the keys in [low, high), their number, how many fit, number of keys above).

  The vectors hold `_ABSENT_KEY` where they hold none of these keys.

  Args:
    x: [D], at least BLOCK values.
    low: uint32 scalar.
    high: uint32 scalar.
    room: how many keys fit, besides those after the last whole block.
  """
  # What is left over from whole blocks is a vector of its own, not collected: padding x copies it.
  whole = x.size // BLOCK * BLOCK
  last = keys(x[whole:])
  inside, above = _sides(last, low, high)
  found = [jnp.where(inside, last, jnp.uint32(_ABSENT_KEY))]
  number, higher = jnp.sum(inside, dtype=jnp.int32), jnp.sum(above, dtype=jnp.int32)
  # One reduction does two jobs: of each sum of 16 terms, the lower 16 bits are the flags "inside",
  # a bit each, and the upper 16 bits count "above". Two such sums make 32 flags, a word.
  shape = (-1, 2, 16, LANES)
  inside, above = (side.reshape(shape) for side in _sides(keys(x[:whole]), low, high))
  bits = inside.astype(jnp.uint32) << jax.lax.iota(jnp.uint32, 16)[None, None, :, None]
  halves = jnp.sum(bits + (above.astype(jnp.uint32) << 16), axis=2, dtype=jnp.uint32)
  first, second = halves[:, 0], halves[:, 1]
  words = ((first & jnp.uint32(0xFFFF)) | (second << 16)).reshape(-1)
  counts = ((first >> 16) + (second >> 16)).astype(jnp.int32)
  higher += jnp.sum(jnp.sum(counts, axis=1, dtype=jnp.int32), dtype=jnp.int32)

  def key(word: jax.Array, bit: jax.Array) -> jax.Array:
    # Bit b of word j of a block is value LANES * b + j of it. Word 37, bit 3: block 2, j = 5, so
    # index 2 * 512 + 3 * 16 + 5 = 1077. Masks, since division of signed integers takes longer.
    return keys(x[(word & -LANES) * 32 + bit * LANES + (word & (LANES - 1))])

  most, total = each_set(words, jnp.full(room, _ABSENT_KEY, jnp.uint32), key)
  return [*found, most], number + total, number + jnp.minimum(total, room), higher


def kth(x: jax.Array, k: int) -> Kth:
  """Returns the k-th largest key of x [D] and how its ties are split.

  Do not `vmap` it: both sides of the `cond` would run. Loop over the vectors instead.

  Args:
    x: [D] floats.
    k: the rank, in [1, D]: 1 is the largest magnitude.
  """
  if x.size <= LEAST:
    return _select([x], jnp.uint32(0), jnp.int32(31), jnp.int32(k), _FEW_BITS)
  low, high, room = _range(x, k)
  found, number, fitting, above = _within(x, low, high, room)
  rank = k - above
  hit = (rank > 0) & (rank <= number) & (number == fitting)
  # Bits of the range's width: 32 less the leading zeros of its last offset.
  bits = 32 - jax.lax.clz(high - low - 1).astype(jnp.int32)
  selected: Kth = jax.lax.cond(
    hit,
    lambda: _select(found, low, bits, rank, _FEW_BITS),
    lambda: _select([x], jnp.uint32(0), jnp.int32(31), jnp.int32(k), _ALL_BITS),
  )
  return selected
