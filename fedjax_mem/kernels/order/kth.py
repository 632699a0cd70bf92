"""The k-th largest magnitude, exactly, by counting the bits of the floats.

The bits of |x|, read as an integer, are ordered as the magnitudes are: the `keys`. A sample of them
tells a narrow range in which the k-th largest lies; one pass over all of them counts those above
the range and marks those within, and the few within are counted bin by bin. A sample unlike the
whole only costs time: if the k-th is not in its range, or the range holds too many, all keys are
counted. All arithmetic is on integers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.kernels.loops import parts

# One above the bits of infinity: what every NaN counts as.
NAN_KEY = 0x7F800001
# What is not among the values to select from: further above any range than the range is wide.
NONE = 0xFFFFFFFF
# The sample: 1 in `SPARSE` values, in runs of `RUN` that follow each other. No more than the least
# sample are not worth one.
SPARSE, RUN, LEAST, MOST = 32, 16, 1 << 14, 1 << 16
# Keys of a sample are told apart down to these many lower bits; by how many standard deviations (of
# draws of single values) the range goes to either side of the rank that is expected.
LOW, DEVIATIONS = 17, 6
# Bits told apart in one pass over few values, or over all.
FEW_BITS, ALL_BITS = 11, 16
# Values in turn that give bits to as many words, so that these are computed side by side.
LANES = 16
BLOCK = 32 * LANES
# Set bits gone through at a time; sums before are by rows of so many, and of the short by one row.
SLOTS = 1 << 13
SIDE, SHORT = 8, 1 << 7


class Kth(NamedTuple):
  """The k-th largest key.

  Attributes:
    key: uint32 scalar.
    room: int32 scalar, how many of the keys that equal it are among the k.
    crowded: whether there are more of those than that.
  """

  key: jax.Array
  room: jax.Array
  crowded: jax.Array


def keys(x: jax.Array) -> jax.Array:
  """Returns uint32 keys in the order of the magnitudes of the floats x, in the shape of x."""
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  return jnp.minimum(bits & jnp.uint32(0x7FFFFFFF), jnp.uint32(NAN_KEY))


def before(values: jax.Array) -> jax.Array:
  """Returns int32 [N], the sum of those before each of the values int32 [N].

  Sums of rows, and within each row by a triangle: the CPU does these side by side, unlike `cumsum`.
  """
  side = SIDE if values.size > SHORT else values.size
  rows = jnp.pad(values, (0, -values.size % side)).reshape(-1, side)
  place = jax.lax.iota(jnp.int32, side)
  earlier = (place[None] < place[:, None])[None]
  sums = jnp.sum(jnp.where(earlier, rows[:, None], 0), axis=2, dtype=jnp.int32)
  if values.size > SHORT:
    sums += before(rows.sum(1, dtype=jnp.int32))[:, None]
  return sums.reshape(-1)[: values.size]


def each_set(words: jax.Array, out: jax.Array, f: Callable) -> tuple[jax.Array, jax.Array]:
  """Returns (out [N] with f of the set bits of uint32 words, in turn, written to it, their number).

  Args:
    words: [W], not empty.
    out: if there are more set bits than N, it holds the first N; if less, it ends as it was.
    f: (indices of words int32 [M], bits of them 0 … 31 int32 [M]) -> [M] in the dtype of out.
  """
  sizes = jax.lax.population_count(words).astype(jnp.int32)
  starts = before(sizes)
  ends = starts + sizes
  total = ends[-1]
  # Each output's word: as many as have ended before it.
  ended = jnp.zeros(out.size + -out.size % SHORT, jnp.int32).at[ends].add(1, mode='drop')
  word = before(ended) + ended
  part = min(SLOTS, out.size)

  def step(i: jax.Array, out: jax.Array) -> jax.Array:
    start = jnp.minimum(i * part, out.size - part)
    slots = start + jax.lax.iota(jnp.int32, part)
    where = parts.take(word, start, part)
    values = f(where, _nth_bit(words[where], slots - starts[where]))
    values = jnp.where(slots < total, values, parts.take(out, start, part))
    return jax.lax.dynamic_update_slice(out, values, (start,))

  # A loop, if of one turn: what goes into it is in memory, and not computed again for each use.
  turns = (jnp.minimum(total, out.size) + (part - 1)) // part
  return jax.lax.fori_loop(0, turns, step, out), total


def _nth_bit(words: jax.Array, rank: jax.Array) -> jax.Array:
  """Returns the place, 0 … 31, of the bit of each uint32 that has `rank` set bits below it."""
  place = jnp.zeros_like(rank)
  for width in (16, 8, 4, 2, 1):
    part = (words >> place.astype(jnp.uint32)) & jnp.uint32(2**width - 1)
    count = jax.lax.population_count(part).astype(jnp.int32)
    beyond = rank >= count
    rank = jnp.where(beyond, rank - count, rank)
    place = jnp.where(beyond, place + width, place)
  return place


def _suffix(counts: jax.Array, rank: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (the last bin i with counts[i:].sum() >= rank, the rank within it, its count)."""
  side = 2 ** (counts.size.bit_length() // 2)
  rows = counts.reshape(-1, side)

  def last(values: jax.Array, rank: jax.Array) -> tuple[jax.Array, jax.Array]:
    down = jnp.cumsum(values[::-1])[::-1]
    i = jnp.sum(down >= rank, dtype=jnp.int32) - 1
    return i, rank - (down[i] - values[i])

  row, rank = last(rows.sum(1, dtype=jnp.int32), rank)
  column, rank = last(rows[row], rank)
  return (row * side + column).astype(jnp.uint32), rank, rows[row, column]


def _select(
  vectors: list[jax.Array], low: jax.Array, bits: jax.Array, rank: jax.Array, step: int
) -> Kth:
  """Returns the largest key but rank - 1 of those in [low, low + 2 ** bits).

  Args:
    vectors: keys or floats.
    low: uint32 scalar.
    bits: int32 scalar, 1 … 31.
    rank: int32 scalar, from 1 to the number of keys in the range.
    step: bits told apart in one pass.
  """

  def narrower(state: tuple) -> tuple:
    low, bits, rank, _ = state
    rest = jnp.maximum(bits - step, 0)

    def add(counts: jax.Array, part: jax.Array) -> jax.Array:
      above = (part if part.dtype == jnp.uint32 else keys(part)) - low
      inside = above >> bits.astype(jnp.uint32) == 0
      where = jnp.where(inside, above >> rest.astype(jnp.uint32), jnp.uint32(0))
      return counts.at[where].add(inside.astype(jnp.int32), mode='promise_in_bounds')

    counts = jnp.zeros(1 << step, jnp.int32)
    for x in vectors:
      counts = parts.fold(add, counts, x)
    i, rank, equal = _suffix(counts, rank)
    return low + (i << rest.astype(jnp.uint32)), rest, rank, equal

  state = low, bits, rank, jnp.int32(0)
  low, _, rank, equal = jax.lax.while_loop(lambda state: state[1] > 0, narrower, state)
  return Kth(low, rank, equal > rank)


def _sample(x: jax.Array) -> jax.Array:
  """Returns values of x [D], runs evenly from all of it."""
  size = min(MOST, max(LEAST, x.size // SPARSE))
  # An odd step, so that the runs are not all from the same columns of a matrix.
  step = (RUN * x.size // size - 1) | 1
  count = x.size // step
  return x[: count * step].reshape(count, step)[:, :RUN].reshape(-1)


def _range(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array, int]:
  """Returns (low, high, room): the k-th largest key is likely in [low, high), and not many others.

  Room is how many there should be at most.
  """
  sample = _sample(x)
  share = k / x.size
  expected = round(share * sample.size)
  margin = math.ceil(DEVIATIONS * math.sqrt(share * (1 - share) * sample.size)) + 1
  bins = keys(sample) >> LOW
  counts = jnp.zeros(1 << (31 - LOW), jnp.int32).at[bins].add(1, mode='promise_in_bounds')
  ranks = jnp.array([expected + margin, expected - margin], jnp.int32)
  low, last = jax.vmap(_suffix, (None, 0))(counts, jnp.clip(ranks, 1, sample.size))[0]
  low = low << LOW if expected + margin <= sample.size else jnp.uint32(0)
  high = (last + 1) << LOW if expected - margin >= 1 else jnp.uint32(NAN_KEY + 1)
  room = 2 * margin * x.size // sample.size + x.size // 128 + 1024
  return low, high, min(x.size, room)


def _sides(key: jax.Array, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (whether the keys are in [low, high), whether they are above)."""
  return key - low < high - low, key >= high


def _within(
  x: jax.Array, low: jax.Array, high: jax.Array, room: int
) -> tuple[list[jax.Array], jax.Array, jax.Array, jax.Array]:
  """Returns (keys of x in [low, high) among NONEs, their number, how many fit, number above).

  Args:
    x: [D], at least BLOCK values.
    low: uint32 scalar.
    high: uint32 scalar.
    room: how many fit, apart from what is left over from whole blocks.
  """
  whole = x.size // BLOCK * BLOCK
  last = keys(x[whole:])
  inside, above = _sides(last, low, high)
  found = [jnp.where(inside, last, jnp.uint32(NONE))]
  number, higher = jnp.sum(inside, dtype=jnp.int32), jnp.sum(above, dtype=jnp.int32)
  # The lower halves are bits, the upper ones count.
  shape = (-1, 2, 16, LANES)
  inside, above = (side.reshape(shape) for side in _sides(keys(x[:whole]), low, high))
  bits = inside.astype(jnp.uint32) << jax.lax.iota(jnp.uint32, 16)[None, None, :, None]
  halves = jnp.sum(bits + (above.astype(jnp.uint32) << 16), axis=2, dtype=jnp.uint32)
  first, second = halves[:, 0], halves[:, 1]
  words = ((first & jnp.uint32(0xFFFF)) | (second << 16)).reshape(-1)
  counts = ((first >> 16) + (second >> 16)).astype(jnp.int32)
  higher += jnp.sum(jnp.sum(counts, axis=1, dtype=jnp.int32), dtype=jnp.int32)

  def key(word: jax.Array, bit: jax.Array) -> jax.Array:
    # The quotient and the rest by LANES, a power of two: division of signed integers takes longer.
    return keys(x[(word & -LANES) * 32 + bit * LANES + (word & (LANES - 1))])

  most, total = each_set(words, jnp.full(room, NONE, jnp.uint32), key)
  return [*found, most], number + total, number + jnp.minimum(total, room), higher


def kth(x: jax.Array, k: int) -> Kth:
  """Returns the k-th largest key of x [D] floats, k in [1, D].

  Under `vmap` it would do all that it can do: go through the vectors one after another instead.
  """
  if x.size <= LEAST:
    return _select([x], jnp.uint32(0), jnp.int32(31), jnp.int32(k), FEW_BITS)
  low, high, room = _range(x, k)
  found, number, fitting, above = _within(x, low, high, room)
  rank = k - above
  hit = (rank > 0) & (rank <= number) & (number == fitting)
  bits = 32 - jax.lax.clz(high - low - 1).astype(jnp.int32)
  return jax.lax.cond(
    hit,
    lambda: _select(found, low, bits, rank, FEW_BITS),
    lambda: _select([x], jnp.uint32(0), jnp.int32(31), jnp.int32(k), ALL_BITS),
  )
