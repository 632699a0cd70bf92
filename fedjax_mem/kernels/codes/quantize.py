"""Uniform quantisation of a vector to 1 to 8 bits a value: QSGD, TernGrad, signs.

b bits stand for L evenly spaced levels on [-s, s]: L = 2 ** b - 1 for b >= 2, so that zero is one
of them, and L = 2 for b = 1. Levels are `step` = 2 s / (L - 1) apart. s is the scale of the whole
vector or of each block of it; it travels beside the codes. With s the largest magnitude:

| function | unbiased | error of a value | mean squared error of a value |
|---|---|---|---|
| `stochastic` | yes, up to 2 ** -24 step | < step | <= step² / 4 |
| `deterministic` | no | <= step / 2 | <= step² / 4 |
| `ternary` | as stochastic | < s | <= s² / 4 |
| `sign` | no | <= max(s, |x| - s) | |x|² - s², s the mean magnitude |

The bounds hold up to float32's rounding (2 ** -22 s).

Worked example: 2 bits stand for the 3 levels -s, 0, s, and 3 bits for 7 levels. Here s = 1, so
`step` is 1 and 1/3:

>>> x = jnp.array([-1.0, 0.25, 0.75])
>>> codes, scale = deterministic(x, 2)
>>> codes.tolist(), scale.tolist(), decode(codes, scale, 2).tolist()
([0, 1, 2], [1.0], [-1.0, 0.0, 1.0])
>>> deterministic(x, 3)[0].tolist()
[0, 4, 5]

`stochastic` gives 0.25 the code of level 0 with probability 3/4 and that of level 1 with
probability 1/4.

Every function rounds part by part (`parts.stream`), so that what is derived from x stays in the
cache.

Edge cases:

- all zeros, or no magnitude above 2 ** -118: zeros
- infinity or NaN: the values of that block are all NaN
- values beyond a scale that was given: clipped to it

Reference: Alistarh et al. (2017), arXiv 1610.02132, for `stochastic` with scale 'l2'; Wen et al.
(2017), arXiv 1705.07878, for `ternary`; Karimireddy et al. (2019), arXiv 1901.09847, for `sign`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_mem.core import tree, validate
from fedjax_mem.kernels.loops import parts
from fedjax_mem.kernels.random import threefry

SCALES = ('max', 'l2')
# Values that share one block of random words (2 words of 4 bytes), a byte for each.
BYTES = 8
# 2**32 over the golden ratio, made odd. The multiples of it, modulo 2**32, fill the range evenly:
# any n successive ones leave no large gap (a Weyl sequence).
GOLDEN = 0x9E3779B9


def levels(bits: int) -> int:
  """Returns the number of levels that codes of `bits` bits stand for.

  An odd number from 2 bits on, so that zero is a level: sparse vectors stay sparse.

  >>> [levels(bits) for bits in (1, 2, 3, 8)]
  [2, 3, 7, 255]

  Args:
    bits: of a code, in [1, 8].

  Raises:
    ValueError: bits is out of range.
  """
  validate.integer(bits=bits, at_most=8)
  return 2 if bits == 1 else 2**bits - 1


def _rows(x: jax.Array, block: int) -> jax.Array:
  """Returns x [D] as rows [S, block], the end filled with zeros."""
  return jnp.pad(x, (0, -x.size % block)).reshape(-1, block)


def _checked(x: jax.Array, block: int | None) -> None:
  """Raises `ValueError` unless x is a vector [D], D >= 1, and the block None or at least 1."""
  if x.ndim != 1 or x.size == 0:
    raise ValueError(f'x must be one flat vector [D], D >= 1, got shape {x.shape!r}.')
  if block is not None:
    validate.integer(block=block)


def relative(rows: jax.Array, scales: jax.Array) -> jax.Array:
  """Returns rows / scales, with 1 for a scale that is not above 0.

  Args:
    rows: float32, of any shape.
    scales: float32, >= 0 or NaN; it broadcasts against rows.
  """
  # A product with the inverse, as a compiler may choose anyway: so all platforms round alike. The
  # inverse of a scale beyond 2**126 is subnormal, which CPUs flush to 0; so large scales, and the
  # rows with them, are first made smaller by a power of two, which is exact.
  shrink = jnp.where(scales > 1e30, jnp.float32(2**-30), jnp.float32(1))
  inverse = 1 / jnp.where(scales > 0, scales * shrink, jnp.float32(1))
  return (rows * shrink) * inverse


def _scales(rows: jax.Array, given: jax.Array | None, scale: str | None) -> jax.Array:
  """Returns the scale of each of rows [S, block], float32 [S]; NaN where a value is not finite.

  Args:
    rows: [S, block] floats.
    given: [S] float32, or None.
    scale: one of `SCALES`, or None if scales are given.
  """
  rows = rows.astype(jnp.float32)
  largest = jnp.max(jnp.abs(rows), axis=1)  # may lose NaN: see `tree.finite`
  if given is not None:
    scales = given
  elif scale == 'l2':
    # The norm of the values relative to the largest: squares neither overflow nor vanish.
    scales = largest * jnp.sqrt(jnp.sum(jnp.square(relative(rows, largest[:, None])), axis=1))
  else:
    scales = largest
  return jnp.where(tree.finite(rows, 1), scales, jnp.float32(jnp.nan))


def _steps(ratio: jax.Array, bits: int) -> jax.Array:
  """Returns x / s in units of a step: in [-(L - 1) / 2, (L - 1) / 2], or in [0, 1] for 1 bit.

  >>> _steps(jnp.array([-1.0, 0.25, 0.75]), 3).tolist(), _steps(jnp.array([-1.0, 0.5]), 1).tolist()
  ([-3.0, 0.75, 2.25], [0.0, 0.75])

  Args:
    ratio: x / s, float32; it is clipped to [-1, 1], and NaN becomes -1.
    bits: of a code.
  """
  # From the middle level, not from the lowest: a sum would round small ratios away. Where no sum
  # follows a product, a compiler cannot fuse the two, which would change the last bit. Only with
  # 1 bit there is no level in the middle.
  half = jnp.float32((levels(bits) - 1) / 2)
  steps, low, high = (ratio + 1) * half, jnp.float32(0), jnp.float32(1)
  if bits > 1:
    steps, low, high = ratio * half, -half, half
  # `maximum` would pass NaN on, and NaN as an integer differs between platforms.
  return jnp.where(steps >= low, jnp.minimum(steps, high), low)


def _encode(
  key: jax.Array | None, x: jax.Array, bits: int, scale: str | jax.Array, block: int | None
) -> tuple[jax.Array, jax.Array]:
  """Returns (codes [D] uint8, scale [S]): rounded at random with a key, else to the nearest.

  The arguments, apart from the key, are those of `stochastic`.
  """
  validate.integer(bits=bits, at_most=8)
  _checked(x, block)
  coded: tuple[jax.Array, jax.Array]
  if isinstance(scale, str):
    coded = _coded(key, x, None, bits, validate.one_of(SCALES, scale=scale), block)
  else:
    count = 1 if block is None else -(-x.size // block)
    given = jnp.broadcast_to(jnp.asarray(scale, jnp.float32).reshape(-1), (count,))
    coded = _coded(key, x, given, bits, None, block)
  return coded


@functools.partial(jax.jit, static_argnames=('bits', 'scale', 'block'))
def _coded(
  key: jax.Array | None,
  x: jax.Array,
  given: jax.Array | None,
  bits: int,
  scale: str | None,
  block: int | None,
) -> tuple[jax.Array, jax.Array]:
  """Returns what `_encode` does, with scales that are `given` or of the kind `scale`.

  Args:
    key: or None, to round to the nearest.
    x: [D] floats.
    given: [S] float32, or None.
    bits: of a code.
    scale: one of `SCALES`, or None if scales are given.
    block: values that share a scale, or None: all.
  """
  # The middle level's code: steps from the middle become steps from the lowest level.
  half = jnp.float32(levels(bits) // 2)
  rounded = _nearest if key is None else _at_random(key, x.size, block)

  def codes(rows: jax.Array, scales: jax.Array, start: jax.Array, length: int) -> jax.Array:
    # Rows up to the end, so that scales broadcast: with an index of the scale for each value,
    # i // block, the division would not be vectorised.
    ratio = relative(rows.astype(jnp.float32), scales[:, None])
    whole = rounded(_steps(ratio, bits), start)
    whole = whole if bits == 1 else whole + half
    return _bytes(whole).reshape(-1)[:length]

  if block is None:
    # One scale needs a pass over all of x before any value can be rounded.
    scales = _scales(x[None], given, scale)
    whole = lambda start, length: codes(parts.take(x, start, length)[None], scales, start, length)
    return parts.stream(whole, x.size, BYTES, parts.SMALL), scales

  def blocks(start: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    rows = _rows(parts.take(x, start, length), block)
    known = None if given is None else parts.take(given, start // block, len(rows))
    scales = _scales(rows, known, scale)
    return codes(rows, scales, start, length), scales

  # With blocks, scale and codes of a part are computed while it is in the cache.
  coded: tuple[jax.Array, jax.Array] = parts.stream(blocks, x.size, block, parts.SMALL)
  return coded


def stochastic(
  key: jax.Array,
  x: jax.Array,
  bits: int,
  scale: str | jax.Array = 'max',
  block: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Returns (codes [D] uint8, scale [S] float32): x rounded at random to a level next to it.

  The expectation of the decoded value is x, up to 2 ** -24 of a step and what float32 rounds of x
  (2 ** -22 |x|): the probability of rounding up is a multiple of 2 ** -23. Each value has 8 random
  bits of its own. The finer 15 bits come from an evenly spread sequence with a random start, which
  all values share: roundings depend on each other by less than 2 ** -8.

  Reference: Alistarh et al. (2017), arXiv 1610.02132, section 3.1, with scale 'l2'.

  Args:
    key: used for nothing else.
    x: [D] floats.
    bits: of a code, in [1, 8].
    scale: 'max' (largest magnitude), 'l2' (the norm, as QSGD; never smaller), or float32 scales [S]
      or one for all, known to both sides: codes of equal scales add.
    block: values that share a scale, S = ceil(D / block); by default all, S = 1.

  Raises:
    ValueError: an argument is out of range.
  """
  return _encode(key, x, bits, scale, block)


def _nearest(steps: jax.Array, start: jax.Array) -> jax.Array:
  """Returns the steps, rounded to the nearest."""
  del start
  return jnp.round(steps)


def _at_random(
  key: jax.Array, size: int, block: int | None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns a function that rounds down or up at random: (steps [rows, block], start) -> the same.

  Args:
    key: used for nothing else.
    size: D, of the whole vector.
    block: length of a row; None: one row, which begins at a multiple of BYTES.
  """
  # Random bits cost most, so a value gets 8 of its own, not 32. They decide all but 2 ** -8 of the
  # cases: those where the fraction and they agree in the first 8 bits.
  of_row = 0 if block is None else -(-block // BYTES)
  count = -(-size // BYTES) if block is None else -(-size // block) * of_row
  words = threefry.words(jax.random.fold_in(key, 0), count)
  shift = jax.random.bits(jax.random.fold_in(key, 1), (), jnp.uint32)

  def rounded(steps: jax.Array, start: jax.Array) -> jax.Array:
    rows, columns = steps.shape
    each = -(-columns // BYTES)
    first = start // BYTES if block is None else start // block * of_row
    two = [parts.take(w, first, rows * each).reshape(rows, each) for w in words]
    # Bits 9 to 23 of a value: the Weyl sequence of its index, which costs one product.
    place = (start + jax.lax.iota(jnp.int32, steps.size)).reshape(rows, columns)
    finer = place.astype(jnp.uint32) * jnp.uint32(GOLDEN) + shift
    drawn = (_octets(two)[:, :columns] << 15) | (finer >> 17)
    # 23 bits as the mantissa of a float in [1, 2), less 1: r / 2**23 without a conversion from
    # integers. Example: r = 2**22 gives the bits of 1.5, and 0.5.
    uniform = jax.lax.bitcast_convert_type(drawn | jnp.uint32(0x3F800000), jnp.float32) - 1
    whole = jnp.floor(steps)
    # The uniform numbers (r + 1/2) / 2**23 are never 0: a value on a level stays there.
    up: jax.Array = steps - whole > uniform + jnp.float32(2**-24)
    return whole + up.astype(jnp.float32)

  return rounded


def _octets(words: list[jax.Array]) -> jax.Array:
  """Returns the bytes of two arrays of words [rows, n], the lowest bytes first: uint32 [rows, 8 n].

  >>> [hex(b) for b in _octets([jnp.array([[0x44332211]], jnp.uint32)] * 2)[0, :5].tolist()]
  ['0x11', '0x22', '0x33', '0x44', '0x11']
  """
  # All lowest bytes of a row, then all second bytes, …: each is one vector operation. Which value
  # gets which byte does not matter; interleaving them would not be vectorised.
  pieces = [(w >> (8 * i)) & jnp.uint32(0xFF) for w in words for i in range(4)]
  return jnp.concatenate(pieces, axis=1)


def _bytes(whole: jax.Array) -> jax.Array:
  """Returns whole numbers in [0, 256), float32, as uint8.

  >>> _bytes(jnp.array([0.0, 5.0, 255.0])).tolist()
  [0, 5, 255]
  """
  # From 2**23 on, neighbouring floats are 1 apart: the lowest bits of 2**23 + n are n. For n = 5
  # the sum has the bits 0x4B000005. A conversion, which saturates, takes twice as long.
  return jax.lax.bitcast_convert_type(whole + jnp.float32(2**23), jnp.uint32).astype(jnp.uint8)


def deterministic(
  x: jax.Array, bits: int, scale: str | jax.Array = 'max', block: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns (codes [D] uint8, scale [S] float32): x rounded to the nearest level. Biased.

  Args:
    x: [D] floats.
    bits: of a code, in [1, 8].
    scale: as for `stochastic`.
    block: values that share a scale, S = ceil(D / block); by default all, S = 1.

  Raises:
    ValueError: an argument is out of range.
  """
  return _encode(None, x, bits, scale, block)


@functools.partial(jax.jit, static_argnames=('bits', 'block'))
def decode(codes: jax.Array, scale: jax.Array, bits: int, block: int | None = None) -> jax.Array:
  """Returns the levels [D] float32 that the codes [D] stand for.

  Args:
    codes: [D] uint8.
    scale: [S] float32, as encoded.
    bits: of a code, in [1, 8].
    block: values that share a scale, S = ceil(D / block); by default all, S = 1.

  Raises:
    ValueError: an argument is out of range, or the scales are not one a block.
  """
  half = jnp.float32((levels(bits) - 1) / 2)
  _checked(codes, block)
  count = 1 if block is None else -(-codes.size // block)
  if scale.shape != (count,):
    raise ValueError(f'scale must be [{count}], one a block, got shape {scale.shape!r}.')
  steps = scale / half
  if block is not None:
    steps = jnp.broadcast_to(steps[:, None], (count, block)).reshape(-1)[: codes.size]
  decoded: jax.Array = (codes.astype(jnp.float32) - half) * steps
  return decoded


def sign(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (codes [D] uint8, 1 for x >= 0, else 0; scale [1] float32 = mean magnitude).

  `decode` with 1 bit restores scale or -scale. Biased: the squared error is ||x||² - D scale², so
  it needs error feedback (Karimireddy et al. 2019, arXiv 1901.09847).

  >>> codes, scale = sign(jnp.array([3.0, -1.0]))
  >>> codes.tolist(), scale.tolist(), decode(codes, scale, 1).tolist()
  ([1, 0], [2.0], [2.0, -2.0])

  Args:
    x: [D] floats.
  """
  x = x.astype(jnp.float32)
  return (x >= 0).astype(jnp.uint8), jnp.mean(jnp.abs(x))[None]


def ternary(
  key: jax.Array, x: jax.Array, clip: float | None = None, block: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns (codes [D] uint8 in 0, 1, 2 for -s, 0, s; scale [S] float32): TernGrad.

  For `decode` with 2 bits. Unbiased without `clip`, as `stochastic`.

  Reference: Wen et al. (2017), arXiv 1705.07878, for the clipping too.

  Args:
    key: used for nothing else.
    x: [D] floats.
    clip: None, or values are first clipped to so many standard deviations about their mean (the
      paper: 2.5), which bounds s and is biased. A value with a scale of its own is not clipped.
    block: values that share a scale; by default all.

  Raises:
    ValueError: an argument is out of range.
  """
  if clip is None:
    return stochastic(key, x, 2, 'max', block)
  validate.positive(clip=clip)
  _checked(x, block)
  rows = _rows(x.astype(jnp.float32), x.size if block is None else block)
  largest = jnp.max(jnp.abs(rows), axis=1)
  unit = relative(rows, largest[:, None])
  on = jax.lax.iota(jnp.int32, rows.size).reshape(rows.shape) < x.size  # not what fills the end
  count = on.sum(1).astype(jnp.float32)
  mean = unit.sum(1) / count
  squares = jnp.where(on, jnp.square(unit - mean[:, None]), 0).sum(1)
  limit = jnp.where(count > 1, jnp.float32(clip) * jnp.sqrt(squares / count), 1)
  return stochastic(key, x, 2, largest * jnp.minimum(limit, 1), block)
