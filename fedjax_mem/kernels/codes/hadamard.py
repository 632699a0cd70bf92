"""Randomised Walsh-Hadamard transform of a long vector, tile by tile.

A vector is cut into tiles [B, G], G blocks of a power of two B, which are the columns. Each block
is multiplied by random signs and by the Hadamard matrix over the root of its size: an orthogonal
map after which values look normal. A whole tile of blocks of up to 2,048 values fits a core's cache
and is transformed there, by passes over its rows; the last tile has the columns that are left, the
end filled with zeros.

Worked example: a block of 4. The result is half of the sum, and half of the three differences that
the signs +-+-, ++--, +--+ make. It is its own inverse.

>>> y = hadamard(jnp.array([[1.0], [2.0], [3.0], [4.0]]))
>>> y[:, 0].tolist(), hadamard(y)[:, 0].tolist()
([5.0, -1.0, -2.0, 0.0], [1.0, 2.0, 3.0, 4.0])

Why blocks are columns: every sum then adds rows of G contiguous values, whatever B is. A value's
neighbours in the vector are therefore in other blocks.

Reference: Ailon, Chazelle (2009) for the transform with random signs.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.kernels.loops import parts

Tree = Any

# Rows that one pass of the transform combines. 4 rather than 2: half as many passes over the tile.
RADIX = 4
_TWO = np.array([[1, 1], [1, -1]], np.float32)
_SMALL_MATRIX = {2: _TWO, 4: np.kron(_TWO, _TWO)}  # radix -> Hadamard matrix of that size
# Blocks that a tile has at least: their columns are the lanes of vector instructions.
LANES = 32
# Values of a block. The larger, the more its rotated values look normal, and the fewer scales are
# sent; the more passes, and padding. The caller of `block_size` may allow more.
LARGEST_BLOCK = 1024
SMALLEST_BLOCK = 64
PADDING = 0.02  # padding that is accepted for a larger block, as a share of the vector


def block_size(size: int, largest: int = LARGEST_BLOCK) -> int:
  """Returns a block for vectors of `size`: a power of two.

  The largest up to `largest` that pads by less than 2%, which exists from 6,400 values on (so
  always for 10**5 and more); for smaller vectors, the one of at least 64 that pads least.

  >>> block_size(100_000), block_size(1_000), block_size(1_100)
  (1024, 1024, 128)

  Args:
    size: D, at least 1.
    largest: a power of two, at least 64.
  """
  validate.integer(size=size)
  block = largest
  candidates = []
  while block >= SMALLEST_BLOCK:
    padding = -size % block
    if padding < PADDING * size:
      return block
    candidates.append((padding, block))
    block //= 2
  # The least padding; of equal ones the larger block.
  return min(candidates, key=lambda c: (c[0], -c[1]))[1]


def padded_size(size: int, block: int) -> int:
  """Returns the number of values after rotation: `size` rounded up to whole blocks.

  Args:
    size: D.
    block: values of a block.

  Raises:
    ValueError: the block is not a power of two.
  """
  return size + -size % checked(block)


def checked(block: int) -> int:
  """Returns the block.

  Args:
    block: values of a block.

  Raises:
    ValueError: it is not a power of two.
  """
  validate.integer(block=block)
  if block & (block - 1):
    raise ValueError(f'block must be a power of two, got {block!r}.')
  return block


@jax.jit
def hadamard(x: jax.Array) -> jax.Array:
  """Returns the Hadamard matrix over the root of B times the columns of x [B, G]: its own inverse.

  Args:
    x: [B, G] float32, B a power of two.

  Raises:
    ValueError: B is not a power of two.
  """
  # The matrix of B = 4**p is the Kronecker product of p matrices of 4 (and one of 2 for an odd
  # number of bits). One pass for each, of 4 B additions, replaces B**2: 5 passes for B = 1,024.
  passes, odd = divmod(checked(x.shape[0]).bit_length() - 1, 2)
  four, two = (functools.partial(_pass, radix=radix) for radix in (RADIX, 2))

  def step(i: jax.Array, y: jax.Array) -> jax.Array:
    return jax.lax.cond(i == 0, two, four, y) if odd else four(y)

  # A loop, so that each pass reads what the last one has written to memory. Unrolled, XLA fuses the
  # passes: it computes a pass again for each use, and a product of one pass may be fused with a
  # sum of the next, which rounds otherwise. (Of blocks of up to 4 there is one pass, which XLA
  # takes out of the loop.)
  return jax.lax.fori_loop(0, passes + odd, step, x) if passes else (two(x) if odd else x)


def _pass(x: jax.Array, radix: int) -> jax.Array:
  """Returns x [B, G] after the transform of one digit of the rows' numbers.

  Args:
    x: [B, G].
    radix: base of the digit, the first one: it takes the values of a row's number // (B / radix).
  """
  # The digit comes out last: row (d, rest) goes to row (rest, d'). The next pass then finds the
  # next digit first, with the same strides, and after all passes every digit is back in its place.
  # For radix 4 and B = 16: rows 0, 4, 8, 12 are combined into the rows 0, 1, 2, 3.
  signs = jnp.asarray(_SMALL_MATRIX[radix])
  slices = x.reshape(radix, -1, x.shape[1])
  terms = [signs[None, :, i, None] * slices[i][:, None] for i in range(radix)]
  # Over the root of the radix in every pass: 1/2, which is exact, and once 1/sqrt(2).
  return (functools.reduce(jnp.add, terms) * np.float32(radix**-0.5)).reshape(x.shape)


def tile_size(block: int) -> int:
  """Returns the number of values in a whole tile: as many as fit a core's cache, or LANES blocks.

  Args:
    block: values of a block.
  """
  return max(parts.SMALL, LANES * block)


def sign_words(key: jax.Array, size: int, block: int) -> jax.Array:
  """Returns the random bits of a vector of `size`, one for each value: uint32 [ceil(padded / 32)].

  Args:
    key: used for nothing else.
    size: D.
    block: values of a block.
  """
  return jax.random.bits(key, (-(-padded_size(size, block) // 32),), jnp.uint32)


def signs(words: jax.Array, start: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns random signs as uint32 of a shape, in the highest bit: 0 for +, 2 ** 31 for -.

  Args:
    words: from `sign_words`.
    start: index of the tile's first value in the vector, a multiple of 32 or 0.
    shape: of the tile, [B, G].
  """
  # Row b of [32, words] has bit 31 - b of every word at the place of a float's sign. So values that
  # follow each other take their bits from different words: whole vectors are shifted alike.
  size = math.prod(shape)
  bits = parts.take(words, start // 32, -(-size // 32))
  bits = bits[None] << jax.lax.iota(jnp.uint32, 32)[:, None]
  highest: jax.Array = bits & jnp.uint32(1 << 31)
  return highest.reshape(-1)[:size].reshape(shape)


def flip(tile: jax.Array, signs: jax.Array) -> jax.Array:
  """Returns a float32 tile times random signs, by "exclusive or" of the sign bits.

  >>> flip(jnp.array([1.5, -2.0]), jnp.array([1 << 31, 0], jnp.uint32)).tolist()
  [-1.5, -2.0]

  Args:
    tile: float32.
    signs: from `signs`, of the same shape.
  """
  flipped: jax.Array = jax.lax.bitcast_convert_type(tile, jnp.uint32) ^ signs
  return jax.lax.bitcast_convert_type(flipped, jnp.float32)


def block_of(x: jax.Array, block: int | None) -> int:
  """Returns the block for x [D]: the one given, else that of its size.

  Args:
    x: [D] floats.
    block: a power of two, or None.

  Raises:
    ValueError: x is not a vector, or the block no power of two.
  """
  if x.ndim != 1 or x.size == 0:
    raise ValueError(f'x must be one flat vector [D], D >= 1, got shape {x.shape!r}.')
  return block_size(x.size) if block is None else checked(block)


def columns(piece: jax.Array, block: int) -> jax.Array:
  """Returns a piece of a vector as a tile [B, G], float32, the end filled with zeros.

  >>> columns(jnp.arange(5), 2).tolist()
  [[0.0, 1.0, 2.0], [3.0, 4.0, 0.0]]

  Args:
    piece: a vector.
    block: B.
  """
  # Row-major: column g is the values g, g + G, g + 2 G, …: a reshape that moves nothing.
  return jnp.pad(piece.astype(jnp.float32), (0, -piece.size % block)).reshape(block, -1)


def encode(
  key: jax.Array, x: jax.Array, block: int | None, code: Callable[[jax.Array], Tree]
) -> Tree:
  """Returns the codes of the rotated x, tile by tile, one after another.

  Args:
    key: the same for `decode`.
    x: [D] floats.
    block: B, a power of two; None: `block_size(D)`.
    code: rotated tile [B, G] -> tree of vectors.

  Raises:
    ValueError: block is not a power of two, or x not a vector.
  """
  block = block_of(x, block)
  words = sign_words(key, x.size, block)

  # Rotated values of the whole vector are never in memory, only a tile of them and its codes.
  def tile_code(start: jax.Array, length: int) -> Tree:
    tile = columns(parts.take(x, start, length), block)
    return code(hadamard(flip(tile, signs(words, start, tile.shape))))

  return parts.stream(tile_code, x.size, tile_size(block), tile_size(block))


def decode(
  key: jax.Array,
  size: int,
  block: int | None,
  tile_of: Callable[[jax.Array, int, int], jax.Array],
) -> jax.Array:
  """Returns the vector [size] whose rotation has the given tiles: the transform, then the signs.

  Args:
    key: that of `encode`.
    size: D.
    block: B, a power of two; None: `block_size(D)`.
    tile_of: (index of the first value, number of values, B) -> tile [B, G].

  Raises:
    ValueError: block is not a power of two.
  """
  block = block_size(size) if block is None else checked(block)
  words = sign_words(key, size, block)

  def values(start: jax.Array, length: int) -> jax.Array:
    tile = hadamard(tile_of(start, padded_size(length, block), block))
    return flip(tile, signs(words, start, tile.shape)).reshape(-1)[:length]

  vector: jax.Array = parts.stream(values, size, tile_size(block), tile_size(block))
  return vector
