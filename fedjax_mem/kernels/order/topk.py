"""Top-k: the k values of largest magnitude, exactly, without a sort.

`kth` finds the key (see `keys`) of the k-th largest magnitude. The values above it are chosen, and
of the values that equal it the first ones. The choice is kept as words of 32 flags until the end.
Integers are compared, never floats: every platform chooses the same values, and subnormal numbers
are distinct from zero.

Worked example: the two largest magnitudes of 1, -3, 0, 1. The second largest is 1, and there are
two values of that magnitude; the first is chosen.

>>> x = jnp.array([1.0, -3.0, 0.0, 1.0])
>>> mask(x, 2).tolist()
[True, True, False, False]
>>> [part.tolist() for part in pack(x, 2)]
[[1.0, -3.0], [0, 1]]
>>> dense, words = kept(x, 2)
>>> dense.tolist(), words.tolist()
([1.0, -3.0, 0.0, 0.0], [3])

Edge cases:

- equal magnitudes: the lowest indices are chosen
- NaN: larger than infinity; all NaNs are equal, whatever their signs and payloads
- all zeros: the first k
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from fedjax_mem.core import validate
from fedjax_mem.kernels.order.kth import before, each_set, keys, kth

# Consecutive values that go to different partial words, so that one vector instruction serves all.
# 8, not 16 as in `kth`: the bits are put into the order of the values, which then takes 8 steps.
LANES = 8
BLOCK = 32 * LANES  # values whose flags fill LANES words of 32 bits

_T = TypeVar('_T')
# JAX does not annotate it: (f) -> f that under `vmap` runs once for each vector.
_sequential_vmap: Callable[[Callable[..., _T]], Callable[..., _T]]
_sequential_vmap = jax.custom_batching.sequential_vmap


def _bits(flags: jax.Array) -> jax.Array:
  """Returns booleans [BLOCK N] as uint32 words [LANES N]: flag i is bit i % 32 of word i // 32.

  >>> words = _bits(jnp.zeros(256, bool).at[jnp.array([0, 9, 35])].set(True))
  >>> words[:2].tolist() == [2**0 + 2**9, 2**3]
  True
  """
  # A block is two halves of 16 rows of LANES flags. Bit r of partial[half, i] is the flag in row r
  # and lane i. This adds whole rows, a vector instruction each; a sum along 32 neighbouring flags
  # would add within a vector. XLA unrolls sums of up to 16 terms: hence halves, not 32 rows.
  flags = flags.reshape(-1, 2, 16, LANES).astype(jnp.uint32)
  lanes = jax.lax.iota(jnp.uint32, 16)[None, None, :, None]
  partial = jnp.sum(flags << lanes, axis=2, dtype=jnp.uint32)
  # Now the order of the values. Word j of a half holds its rows 4 j … 4 j + 3, so of every lane i
  # the four bits 4 j … 4 j + 3, at the positions i, i + 8, i + 16, i + 24.
  four = 4 * jax.lax.iota(jnp.uint32, 4)[None, None]
  words = jnp.zeros_like(partial[..., :4])
  for i in range(LANES):
    bits = (partial[..., i : i + 1] >> four) & jnp.uint32(15)
    # The product adds copies shifted by 0, 7, 14, 21; the mask keeps bit q of the copy shifted by
    # 7 q, at position 8 q. So 0b1011 becomes 0x01000101. No two bits meet: there are no carries.
    spread = bits * jnp.uint32(1 + 2**7 + 2**14 + 2**21) & jnp.uint32(0x01010101)
    words |= spread << i
  return words.reshape(-1)


def _words(choose: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """Returns which keys of x [D] are chosen, as words [ceil(D / 32)].

  Args:
    choose: keys -> booleans of the same shape.
    x: [D] floats.
  """
  whole, rest = x.size // BLOCK * BLOCK, x.size % BLOCK
  words = _bits(choose(keys(x[:whole])))
  if not rest:
    return words
  # The end is padded on its own: to pad all of the keys would copy them.
  end = _bits(jnp.pad(choose(keys(x[whole:])), (0, BLOCK - rest)))
  return jnp.concatenate([words, end[: -(-rest // 32)]])


def _split_ties(x: jax.Array, kth_key: jax.Array, ties_kept: jax.Array) -> jax.Array:
  """Returns words [ceil(D / 32)]: the keys above the k-th, and the first `ties_kept` that equal it.

  Args:
    x: [D] floats.
    kth_key: uint32 scalar.
    ties_kept: int32 scalar.
  """
  # Example: words with 2, 0 and 3 ties, of which 3 are kept. `starts` is 0, 2, 2, and `left`, what
  # remains to be kept from each word on, is 3, 1, 1: all of word 0, and the lowest one of word 2.
  ties = _words(lambda key: key == kth_key, x)
  sizes = jax.lax.population_count(ties).astype(jnp.int32)
  starts = before(sizes)
  left = ties_kept - starts
  # At most one word is kept in part: the one in which the count is reached, here word 2.
  cut = jnp.sum(starts + sizes < ties_kept, dtype=jnp.int32)
  some = _lowest(ties[cut], left[cut])
  first = jnp.where(left >= sizes, ties, jnp.where(left > 0, some, jnp.uint32(0)))
  return _words(lambda key: key > kth_key, x) | first


def _lowest(word: jax.Array, count: jax.Array) -> jax.Array:
  """Returns the lowest `count` of the set bits of a word, uint32.

  >>> bin(_lowest(jnp.uint32(0b11010), 2))
  '0b1010'
  """
  lanes = jax.lax.iota(jnp.uint32, 32)
  bits = (word >> lanes) & jnp.uint32(1)
  taken = jnp.cumsum(bits.astype(jnp.int32)) <= count
  return jnp.sum(jnp.where(taken, bits << lanes, jnp.uint32(0)), dtype=jnp.uint32)


def _flags(words: jax.Array, size: int) -> jax.Array:
  """Returns the first `size` bits of words as booleans: the inverse of `_bits`."""
  lanes = jax.lax.iota(jnp.uint32, 32)[None]
  bits = (words[:, None] >> lanes) & jnp.uint32(1)
  flags: jax.Array = bits == 1
  return flags.reshape(-1)[:size]


def _public(f: Callable[..., _T]) -> Callable[..., _T]:
  """Returns f(x, k) with its arguments checked, compiled once for each k and shape.

  Under `vmap` the vectors are processed one after another. Side by side, both sides of each `cond`
  would be computed, and XLA's scatters of several vectors at once are slow.
  """

  @functools.partial(jax.jit, static_argnames=('k',))
  @functools.wraps(f)
  def checked(x: jax.Array, k: int) -> Any:
    if x.ndim != 1:
      raise ValueError(f'x must be one flat vector [D], got shape {x.shape!r}.')
    validate.integer(k=k, at_most=x.size)
    return _sequential_vmap(functools.partial(f, k=k))(x)

  return checked


@_public
def threshold(x: jax.Array, k: int) -> jax.Array:
  """Returns the key (see `keys`) of the k-th largest magnitude of x [D], a uint32 scalar.

  Args:
    x: [D] floats.
    k: values to choose, in [1, D].

  Raises:
    ValueError: x is not a vector, or k is out of range.
  """
  return kth(x, k).key


@_public
def mask(x: jax.Array, k: int) -> jax.Array:
  """Returns booleans [D], true at the k values of largest magnitude, exactly k of them.

  Args:
    x: [D] floats.
    k: values to choose, in [1, D].

  Raises:
    ValueError: x is not a vector, or k is out of range.
  """
  kth_key, ties_kept, ties_cut = kth(x, k)
  # Without ties to split, one comparison is enough; the other case needs the words.
  split = lambda: _flags(_split_ties(x, kth_key, ties_kept), x.size)
  chosen: jax.Array = jax.lax.cond(ties_cut, split, lambda: keys(x) >= kth_key)
  return chosen


@_public
def kept(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns (x [D] with zeros where it is not chosen, the mask as words uint32 [ceil(D / 32)]).

  The first is what `unpack` makes of the result of `pack`, without the indices in between.

  Args:
    x: [D] floats.
    k: values to choose, in [1, D].

  Raises:
    ValueError: x is not a vector, or k is out of range.
  """
  kth_key, ties_kept, ties_cut = kth(x, k)
  zero = jnp.zeros((), x.dtype)

  def split() -> tuple[jax.Array, jax.Array]:
    words = _split_ties(x, kth_key, ties_kept)
    return jnp.where(_flags(words, x.size), x, zero), words

  def plain() -> tuple[jax.Array, jax.Array]:
    # Both results are computed from x: neither needs a mask of D booleans in memory.
    chosen: Callable[[jax.Array], jax.Array] = lambda key: key >= kth_key
    return jnp.where(chosen(keys(x)), x, zero), _words(chosen, x)

  dense: tuple[jax.Array, jax.Array] = jax.lax.cond(ties_cut, split, plain)
  return dense


@_public
def pack(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns (values [k] in the dtype of x, indices [k] int32, ascending) of the largest magnitudes.

  Args:
    x: [D] floats.
    k: values to choose, in [1, D].

  Raises:
    ValueError: x is not a vector, or k is out of range.
  """
  kth_key, ties_kept, ties_cut = kth(x, k)
  split = lambda: _split_ties(x, kth_key, ties_kept)
  words = jax.lax.cond(ties_cut, split, lambda: _words(lambda key: key >= kth_key, x))
  # Bit b of word w is value 32 w + b, so that the indices come out ascending.
  # Words of flags first, then their set bits: `jnp.nonzero` would make prefix sums of D flags.
  place = lambda word, bit: word * 32 + bit
  indices, _ = each_set(words, jnp.zeros(k, jnp.int32), place)
  return x[indices], indices


@functools.partial(jax.jit, static_argnames=('size',))
def unpack(values: jax.Array, indices: jax.Array, size: int) -> jax.Array:
  """Returns the vector [size] that `pack` stands for: values at their indices, zero elsewhere.

  Args:
    values: [k], of any dtype.
    indices: [k] int32, distinct; those beyond `size` are dropped.
    size: D.
  """
  # The indices are distinct: XLA need not order the writes.
  empty = jnp.zeros(size, values.dtype)
  return empty.at[indices].set(values, mode='drop', unique_indices=True)
