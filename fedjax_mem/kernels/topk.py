"""The k values of largest magnitude, exactly, by selection on the bits of the floats.

The bits of |x|, read as an integer, are ordered as the magnitudes are; so the k-th largest is found
by counting, without a sort. All arithmetic is on integers: the same bits on every platform, and
subnormal numbers are told from zero.

Edge cases:

- equal magnitudes: the lowest indices win
- NaN: larger than infinity, all NaNs alike, whatever their sign and payload
- all zeros: the first k
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_mem.core import validate
from fedjax_mem.kernels import parts

# One above the bits of infinity: what every NaN counts as.
NAN_KEY = 0x7F800001
# Keys are told apart by their upper bits first, then by these many lower ones: the counts of long
# vectors may take more memory, and those of the second pass stay in a CPU's first cache.
LOW, LOW_OF_LONG, LONG = 15, 13, 1 << 18


def keys(x: jax.Array) -> jax.Array:
  """Returns uint32 keys in the order of the magnitudes of the floats x, in the shape of x."""
  bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
  return jnp.minimum(bits & jnp.uint32(0x7FFFFFFF), jnp.uint32(NAN_KEY))


def _suffix(counts: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (the last bin i with counts[i:].sum() >= k, how many of the k bin i must give)."""
  side = 2 ** (counts.size.bit_length() // 2)
  rows = counts.reshape(-1, side)

  def last(values: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
    after = jnp.cumsum(values[::-1])[::-1]
    i = jnp.sum(after >= wanted, dtype=jnp.int32) - 1
    return i, wanted - (after[i] - values[i])

  row, rest = last(rows.sum(1, dtype=jnp.int32), k)
  column, rest = last(rows[row], rest)
  return (row * side + column).astype(jnp.uint32), rest


def _histogram(x: jax.Array, bins: Callable, bits: int) -> jax.Array:
  """Returns counts int32 [2 ** bits] over x [D], where `bins` is keys -> (bins, what they add)."""

  def add(counts: jax.Array, part: jax.Array) -> jax.Array:
    where, amount = bins(keys(part))
    return counts.at[where].add(amount, mode='promise_in_bounds')

  counts = jnp.zeros(1 << bits, jnp.int32)
  return parts.fold(add, counts, x)


def _kth(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns (the k-th largest key of x [D], how many of the keys equal to it are among the k)."""
  low = LOW_OF_LONG if x.size >= LONG else LOW

  def upper(part: jax.Array) -> tuple[jax.Array, jax.Array]:
    return part >> low, jnp.ones(part.shape, jnp.int32)

  top, rest = _suffix(_histogram(x, upper, 31 - low), jnp.int32(k))

  def lower(part: jax.Array) -> tuple[jax.Array, jax.Array]:
    return part & jnp.uint32(2**low - 1), (part >> low == top).astype(jnp.int32)

  bottom, rest = _suffix(_histogram(x, lower, low), rest)
  return (top << low) | bottom, rest


def _bits(flags: jax.Array) -> jax.Array:
  """Returns booleans [32 N] as uint32 words [N], the first in the lowest bit."""
  lanes = jax.lax.iota(jnp.uint32, 32)[None]
  return jnp.sum(flags.reshape(-1, 32).astype(jnp.uint32) << lanes, axis=1, dtype=jnp.uint32)


def _words(choose: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """Returns which keys of x [D] are chosen, as words [ceil(D / 32)]."""
  whole = x.size // 32 * 32
  words = _bits(choose(keys(x[:whole])))
  if whole == x.size:
    return words
  # The end apart: to pad all of the keys would copy them.
  rest = jnp.pad(choose(keys(x[whole:])), (0, whole + 32 - x.size))
  return jnp.concatenate([words, _bits(rest)])


def _ends(words: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (set bits in each of the words [N], set bits up to the end of each), int32."""
  sizes = jax.lax.population_count(words).astype(jnp.int32)
  return sizes, jnp.cumsum(sizes)


def _chosen(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (mask of x [D] as uint32 words [ceil(D / 32)], the least key, whether ties are left).

  They are where not all keys that equal the least one are chosen.
  """
  least, room = _kth(x, k)
  words = _words(lambda key: key >= least, x)
  count = jnp.sum(jax.lax.population_count(words), dtype=jnp.uint32)

  def without_the_last(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    ties = _words(lambda key: key == least, x)
    sizes, ends = _ends(ties)
    # Of the word in which the ties run out, the lowest bits.
    left = room - (ends - sizes)
    cut = jnp.sum(ends < room, dtype=jnp.int32)
    some = _lowest(ties[cut], left[cut])
    kept = jnp.where(left >= sizes, ties, jnp.where(left > 0, some, jnp.uint32(0)))
    return (state[0] & ~ties) | kept, jnp.bool_(False)

  # Mostly there are no ties too many. A loop of at most one turn: under vmap a `cond` does both.
  left_out = count > k
  words, _ = jax.lax.while_loop(lambda state: state[1], without_the_last, (words, left_out))
  return words, least, left_out


def _lowest(word: jax.Array, count: jax.Array) -> jax.Array:
  """Returns the lowest `count` of the set bits of a word."""
  lanes = jax.lax.iota(jnp.uint32, 32)
  bits = (word >> lanes) & jnp.uint32(1)
  taken = jnp.cumsum(bits.astype(jnp.int32)) <= count
  return jnp.sum(jnp.where(taken, bits << lanes, jnp.uint32(0)), dtype=jnp.uint32)


def _checked(x: jax.Array, k: int) -> None:
  if x.ndim != 1:
    raise ValueError(f'x must be one flat vector [D], got shape {x.shape!r}.')
  validate.integer(k=k, at_most=x.size)


@functools.partial(jax.jit, static_argnames=('k',))
def threshold(x: jax.Array, k: int) -> jax.Array:
  """Returns the key (see `keys`) of the k-th largest magnitude of x [D], a uint32 scalar.

  Args:
    x: [D] floats.
    k: values to choose, in [1, D].

  Raises:
    ValueError: x is not a vector, or k is out of range.
  """
  _checked(x, k)
  return _kth(x, k)[0]


@functools.partial(jax.jit, static_argnames=('k',))
def mask(x: jax.Array, k: int) -> jax.Array:
  """Returns booleans [D], true at the k values of largest magnitude, exactly k of them.

  Args:
    x: [D] floats.
    k: values to choose, in [1, D].

  Raises:
    ValueError: x is not a vector, or k is out of range.
  """
  _checked(x, k)
  return _flags(_chosen(x, k)[0], x.size)


def _flags(words: jax.Array, size: int) -> jax.Array:
  """Returns the first `size` bits of words as booleans."""
  lanes = jax.lax.iota(jnp.uint32, 32)[None]
  bits = (words[:, None] >> lanes) & jnp.uint32(1)
  return (bits == 1).reshape(-1)[:size]


@functools.partial(jax.jit, static_argnames=('k',))
def kept(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns (x where it is chosen and else zero, the mask as words uint32 [ceil(D / 32)]).

  The first is `unpack` of `pack`, without the detour.

  Args:
    x: [D] floats.
    k: values to choose, in [1, D].

  Raises:
    ValueError: x is not a vector, or k is out of range.
  """
  _checked(x, k)
  words, least, left_out = _chosen(x, k)
  zero = jnp.zeros((), x.dtype)

  def by_mask(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return jnp.where(_flags(words, x.size), x, zero), jnp.bool_(False)

  values = jnp.where(keys(x) >= least, x, zero)
  return jax.lax.while_loop(lambda state: state[1], by_mask, (values, left_out))[0], words


@functools.partial(jax.jit, static_argnames=('k',))
def pack(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns (values [k] in the dtype of x, indices [k] int32, ascending) of the largest magnitudes.

  Args:
    x: [D] floats.
    k: values to choose, in [1, D].

  Raises:
    ValueError: x is not a vector, or k is out of range.
  """
  _checked(x, k)
  words, _, _ = _chosen(x, k)
  sizes, ends = _ends(words)
  # Each output's word: as many as have ended before it. (Sums are scanned faster than maxima.)
  word = jnp.cumsum(jnp.zeros(k, jnp.int32).at[ends].add(1, mode='drop'))
  rank = jax.lax.iota(jnp.int32, k) - (ends - sizes)[word]
  indices = word * 32 + _nth_bit(words[word], rank)
  return x[indices], indices


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


@functools.partial(jax.jit, static_argnames=('size',))
def unpack(values: jax.Array, indices: jax.Array, size: int) -> jax.Array:
  """Returns [size], `values` [k] at their `indices` [k] and zero elsewhere."""
  empty = jnp.zeros(size, values.dtype)
  return empty.at[indices].set(values, mode='drop', unique_indices=True)
