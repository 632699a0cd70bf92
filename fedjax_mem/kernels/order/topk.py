"""The k values of largest magnitude, exactly, without a sort.

All arithmetic is on integers, see `kth`: the same bits on every platform, and subnormal numbers are
told from zero.

Edge cases:

- equal magnitudes: the lowest indices win
- NaN: larger than infinity, all NaNs alike, whatever their sign and payload
- all zeros: the first k
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import validate
from fedjax_mem.kernels.order.kth import before, each_set, keys, kth

# Values in turn that give bits to as many words, so that these are computed side by side.
LANES = 8
BLOCK = 32 * LANES


def _bits(flags: jax.Array) -> jax.Array:
  """Returns booleans [BLOCK N] as uint32 words [LANES N], the first in the lowest bit."""
  # In halves: sums of up to 16 are unrolled.
  flags = flags.reshape(-1, 2, 16, LANES).astype(jnp.uint32)
  lanes = jax.lax.iota(jnp.uint32, 16)[None, None, :, None]
  apart = jnp.sum(flags << lanes, axis=2, dtype=jnp.uint32)
  # The half i of a block has its values i, i + 8, …; so word j of the result has bits 4 j … 4 j + 3
  # of each, in the places i, i + 8, i + 16, i + 24.
  four = 4 * jax.lax.iota(jnp.uint32, 4)[None, None]
  words = jnp.zeros_like(apart[..., :4])
  for i in range(LANES):
    bits = (apart[..., i : i + 1] >> four) & jnp.uint32(15)
    spread = bits * jnp.uint32(1 + 2**7 + 2**14 + 2**21) & jnp.uint32(0x01010101)
    words |= spread << i
  return words.reshape(-1)


def _words(choose: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
  """Returns which keys of x [D] are chosen, as words [ceil(D / 32)]."""
  whole, rest = x.size // BLOCK * BLOCK, x.size % BLOCK
  words = _bits(choose(keys(x[:whole])))
  if not rest:
    return words
  # The end apart: to pad all of the keys would copy them.
  end = _bits(jnp.pad(choose(keys(x[whole:])), (0, BLOCK - rest)))
  return jnp.concatenate([words, end[: -(-rest // 32)]])


def _cut(x: jax.Array, least: jax.Array, room: jax.Array) -> jax.Array:
  """Returns the mask of the keys above the least, and the first `room` of those that equal it."""
  ties = _words(lambda key: key == least, x)
  sizes = jax.lax.population_count(ties).astype(jnp.int32)
  # Of the word in which the ties run out, the lowest bits.
  starts = before(sizes)
  left = room - starts
  cut = jnp.sum(starts + sizes < room, dtype=jnp.int32)
  some = _lowest(ties[cut], left[cut])
  kept = jnp.where(left >= sizes, ties, jnp.where(left > 0, some, jnp.uint32(0)))
  return _words(lambda key: key > least, x) | kept


def _lowest(word: jax.Array, count: jax.Array) -> jax.Array:
  """Returns the lowest `count` of the set bits of a word."""
  lanes = jax.lax.iota(jnp.uint32, 32)
  bits = (word >> lanes) & jnp.uint32(1)
  taken = jnp.cumsum(bits.astype(jnp.int32)) <= count
  return jnp.sum(jnp.where(taken, bits << lanes, jnp.uint32(0)), dtype=jnp.uint32)


def _public(f: Callable) -> Callable:
  """Returns f(x, k) with its arguments checked, compiled for each k.

  Under `vmap` it goes through the vectors one after another: scatters of several at once are slow,
  and of a branch both sides would be computed.
  """

  @functools.partial(jax.jit, static_argnames=('k',))
  @functools.wraps(f)
  def checked(x: jax.Array, k: int) -> Any:
    if x.ndim != 1:
      raise ValueError(f'x must be one flat vector [D], got shape {x.shape!r}.')
    validate.integer(k=k, at_most=x.size)
    return jax.custom_batching.sequential_vmap(functools.partial(f, k=k))(x)

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
  least, room, crowded = kth(x, k)
  cut = lambda: _flags(_cut(x, least, room), x.size)
  return jax.lax.cond(crowded, cut, lambda: keys(x) >= least)


def _flags(words: jax.Array, size: int) -> jax.Array:
  """Returns the first `size` bits of words as booleans."""
  lanes = jax.lax.iota(jnp.uint32, 32)[None]
  bits = (words[:, None] >> lanes) & jnp.uint32(1)
  return (bits == 1).reshape(-1)[:size]


@_public
def kept(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns (x where it is chosen and else zero, the mask as words uint32 [ceil(D / 32)]).

  The first is `unpack` of `pack`, without the detour.

  Args:
    x: [D] floats.
    k: values to choose, in [1, D].

  Raises:
    ValueError: x is not a vector, or k is out of range.
  """
  least, room, crowded = kth(x, k)
  zero = jnp.zeros((), x.dtype)

  def cut() -> tuple[jax.Array, jax.Array]:
    words = _cut(x, least, room)
    return jnp.where(_flags(words, x.size), x, zero), words

  def plain() -> tuple[jax.Array, jax.Array]:
    chosen = lambda key: key >= least
    return jnp.where(chosen(keys(x)), x, zero), _words(chosen, x)

  return jax.lax.cond(crowded, cut, plain)


@_public
def pack(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns (values [k] in the dtype of x, indices [k] int32, ascending) of the largest magnitudes.

  Args:
    x: [D] floats.
    k: values to choose, in [1, D].

  Raises:
    ValueError: x is not a vector, or k is out of range.
  """
  least, room, crowded = kth(x, k)
  cut = lambda: _cut(x, least, room)
  words = jax.lax.cond(crowded, cut, lambda: _words(lambda key: key >= least, x))
  place = lambda word, bit: word * 32 + bit
  indices, _ = each_set(words, jnp.zeros(k, jnp.int32), place)
  return x[indices], indices


@functools.partial(jax.jit, static_argnames=('size',))
def unpack(values: jax.Array, indices: jax.Array, size: int) -> jax.Array:
  """Returns [size], `values` [k] at their `indices` [k] and zero elsewhere."""
  empty = jnp.zeros(size, values.dtype)
  return empty.at[indices].set(values, mode='drop', unique_indices=True)
