"""Randomised Walsh-Hadamard rotation, and DRIVE and EDEN: few bits a value on a rotated vector.

A vector is cut into tiles [B, G], G blocks of a power of two B, which are the columns. Each block
is multiplied by random signs and by the Hadamard matrix over the root of its size: an orthogonal
map after which values look normal. A whole tile of blocks of up to 2,048 values fits a core's cache
and is rotated there, by passes over its rows; the last tile has the columns that are left, the end
filled with zeros.

EDEN rounds each value, in units of its block's root mean square, to the nearest of 2 ** b centroids
(Lloyd-Max for the standard normal) and sends one scale a block, ||x||² / <Rx, Q(Rx)>, that makes
the estimate unbiased for a uniform rotation; for this one only nearly so (with one bit, blocks of
512 and heavy tails, a bias of 0.6% of the norm was seen). DRIVE is its case b = 1. Relative squared
error (vNMSE) of an estimate, for large blocks: 0.571, 0.133, 0.0358, 0.00959 with 1, 2, 3, 4 bits.

Edge cases:

- a block of zeros: zeros
- an infinite or NaN value: NaN for its block; finite ones beyond 1e36 may overflow to that

Reference: Vargaftik et al. (2021), arXiv 2105.08339 (DRIVE); Vargaftik et al. (2022), arXiv
2108.08842 (EDEN); Max (1960) for the centroids.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.kernels.codes.quantize import relative
from fedjax_mem.kernels.loops import parts

Tree = Any

# Rows that one pass of the transform combines, two bits of their numbers; radix -> its matrix.
RADIX = 4
_TWO = np.array([[1, 1], [1, -1]], np.float32)
_SMALL = {2: _TWO, 4: np.kron(_TWO, _TWO)}
# Blocks that a tile has at least: their columns are the lanes of vector instructions.
LANES = 32
LARGEST_BLOCK = 1024
SMALLEST_BLOCK = 64
# Padding that is accepted for a larger block, as a share of the vector.
PADDING = 0.02
# bits -> the upper half of the Lloyd-Max centroids of the standard normal; the lower is its mirror.
CENTROIDS = {
  1: (0.7978845608028654,),
  2: (0.4527800398860679, 1.5104176087114887),
  3: (0.24509416307340598, 0.7560052489539643, 1.3439092613750225, 2.151945669890335),
  4: (
    0.12839501671105813,
    0.38804823445328507,
    0.6567589957631145,
    0.9423402689122875,
    1.2562309480263467,
    1.6180460517130526,
    2.069016730231837,
    2.732588804065177,
  ),
}


def block_size(size: int, largest: int = LARGEST_BLOCK) -> int:
  """Returns a block for vectors of `size`: a power of two.

  The largest up to `largest` that pads by less than 2%, which exists from 6,400 values on (so
  always for 10**5 and more); for smaller vectors, the one of at least 64 that pads least.

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
  return min(candidates, key=lambda c: (c[0], -c[1]))[1]


def padded_size(size: int, block: int) -> int:
  """Returns the number of values after rotation: `size` rounded up to whole blocks."""
  return size + -size % block


def _checked(block: int) -> int:
  validate.integer(block=block)
  if block & (block - 1):
    raise ValueError(f'block must be a power of two, got {block!r}.')
  return block


@jax.jit
def hadamard(x: jax.Array) -> jax.Array:
  """Returns the Hadamard matrix over the root of B, a power of two, times the columns of x [B, G].

  It is its own inverse; x is float32.
  """
  passes, odd = divmod(_checked(x.shape[0]).bit_length() - 1, 2)
  four, two = (functools.partial(_pass, radix=radix) for radix in (RADIX, 2))

  def step(i: jax.Array, y: jax.Array) -> jax.Array:
    return jax.lax.cond(i == 0, two, four, y) if odd else four(y)

  # A loop, since what it has written is in memory: the next pass does not compute it again, and
  # nobody's product becomes part of a sum here, which would round it otherwise. (Of blocks of up to
  # 4 there is one pass, which XLA takes out of the loop.)
  return jax.lax.fori_loop(0, passes + odd, step, x) if passes else (two(x) if odd else x)


def _pass(x: jax.Array, radix: int) -> jax.Array:
  """Returns x [B, G] after the transform of the digit that leads the rows' numbers, base `radix`.

  The digit comes out last, so that the same pass does the next one, and all are back in the end.
  """
  signs = jnp.asarray(_SMALL[radix])
  slices = x.reshape(radix, -1, x.shape[1])
  terms = [signs[None, :, i, None] * slices[i][:, None] for i in range(radix)]
  return (functools.reduce(jnp.add, terms) * np.float32(radix**-0.5)).reshape(x.shape)


def _tile(block: int) -> int:
  """Returns the number of values in a whole tile: for a core's cache, unless blocks are long."""
  return max(parts.SMALL, LANES * block)


def _words(key: jax.Array, size: int, block: int) -> jax.Array:
  """Returns the random bits, uint32, of which each value of a vector of `size` has one."""
  return jax.random.bits(key, (-(-padded_size(size, block) // 32),), jnp.uint32)


def _signs(words: jax.Array, start: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns the sign bits, as uint32 of `shape`, of the tile that begins at value `start`."""
  size = math.prod(shape)
  bits = parts.take(words, start // 32, -(-size // 32))
  bits = bits[None] << jax.lax.iota(jnp.uint32, 32)[:, None]
  return (bits & jnp.uint32(1 << 31)).reshape(-1)[:size].reshape(shape)


def _flip(tile: jax.Array, signs: jax.Array) -> jax.Array:
  flipped = jax.lax.bitcast_convert_type(tile, jnp.uint32) ^ signs
  return jax.lax.bitcast_convert_type(flipped, jnp.float32)


def _vector(x: jax.Array, block: int | None) -> int:
  """Returns the block for x [D].

  Raises:
    ValueError: x is not a vector, or the block no power of two.
  """
  if x.ndim != 1 or x.size == 0:
    raise ValueError(f'x must be one flat vector [D], D >= 1, got shape {x.shape!r}.')
  return block_size(x.size) if block is None else _checked(block)


def _columns(piece: jax.Array, block: int) -> jax.Array:
  """Returns a piece of a vector as a tile [block, G], float32."""
  return jnp.pad(piece.astype(jnp.float32), (0, -piece.size % block)).reshape(block, -1)


def _encode(
  key: jax.Array, x: jax.Array, block: int | None, code: Callable[[jax.Array], Tree]
) -> Tree:
  """Returns code(tile [block, G]) of the rotated x, tile by tile; code gives vectors."""
  block = _vector(x, block)
  words = _words(key, x.size, block)

  def encode(start: jax.Array, length: int) -> Tree:
    tile = _columns(parts.take(x, start, length), block)
    return code(hadamard(_flip(tile, _signs(words, start, tile.shape))))

  return parts.stream(encode, x.size, _tile(block), _tile(block))


def _decode(
  key: jax.Array,
  size: int,
  block: int | None,
  tile_of: Callable[[jax.Array, int, int], jax.Array],
) -> jax.Array:
  """Returns [size], rotated back; tile_of is (start, values, block) -> tile [block, G]."""
  block = block_size(size) if block is None else _checked(block)
  words = _words(key, size, block)

  def decode(start: jax.Array, length: int) -> jax.Array:
    tile = hadamard(tile_of(start, padded_size(length, block), block))
    return _flip(tile, _signs(words, start, tile.shape)).reshape(-1)[:length]

  return parts.stream(decode, size, _tile(block), _tile(block))


@functools.partial(jax.jit, static_argnames=('block',))
def rotate(key: jax.Array, x: jax.Array, block: int | None = None) -> jax.Array:
  """Returns x rotated at random, float32 [padded_size(D, block)], of the same norm.

  Args:
    key: the same for `unrotate`.
    x: [D] floats.
    block: a power of two; by default `block_size(D)`.

  Raises:
    ValueError: block is not a power of two, or x not a vector.
  """
  return _encode(key, x, block, lambda y: y.reshape(-1))


@functools.partial(jax.jit, static_argnames=('size', 'block'))
def unrotate(key: jax.Array, y: jax.Array, size: int, block: int | None = None) -> jax.Array:
  """Returns the vector [size] that `rotate` made y of.

  Raises:
    ValueError: block is not a power of two, or y is not of the size that it gives.
  """
  block = block_size(size) if block is None else block
  _fits(y, size, block, 'y')
  return _decode(key, size, block, lambda at, n, b: parts.take(y, at, n).reshape(b, -1))


def _fits(y: jax.Array, size: int, block: int, name: str) -> None:
  if y.shape != (padded_size(size, _checked(block)),):
    raise ValueError(
      f'{name} must be [{padded_size(size, block)}] for {size} values in blocks of {block}, '
      f'got {y.shape!r}.'
    )


def centroids(bits: int) -> np.ndarray:
  """Returns the 2 ** bits centroids, ascending float32: code i stands for the i-th."""
  validate.integer(bits=bits, at_most=4)
  upper = np.array(CENTROIDS[bits], np.float32)
  return np.concatenate([-upper[::-1], upper])


def _by_rank(ranks: jax.Array, values: np.ndarray) -> jax.Array:
  """Returns values[ranks], by a chain of selections: unlike a gather, it is vectorised."""
  out = jnp.full(ranks.shape, values[0])
  for i in range(1, len(values)):
    out = jnp.where(ranks >= i, values[i], out)
  return out


def _value(codes: jax.Array, bits: int) -> jax.Array:
  """Returns the centroids of the codes."""
  half = 2 ** (bits - 1)
  codes = codes.astype(jnp.int32)
  above = codes >= half
  size = _by_rank(jnp.where(above, codes - half, half - 1 - codes), centroids(bits)[half:])
  return jnp.where(above, size, -size)


@functools.partial(jax.jit, static_argnames=('bits', 'block'))
def eden_encode(
  key: jax.Array, x: jax.Array, bits: int, block: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns (codes uint8 [padded_size(D, block)], scale float32 [blocks]).

  Args:
    key: of this client and use; the decoder needs it too. Clients with keys of their own have
      independent errors, which average out.
    x: [D] floats.
    bits: of a code, in [1, 4].
    block: a power of two; by default `block_size(D)`.

  Raises:
    ValueError: an argument is out of range.
  """
  half = 2 ** (validate.integer(bits=bits, at_most=4) - 1)

  def code(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    ranks, _, scale = _rounded(y, bits)
    codes = jnp.where(y >= 0, half + ranks, half - 1 - ranks).astype(jnp.uint8)
    return codes.reshape(-1), scale.reshape(-1)

  return _encode(key, x, block, code)


def _rounded(y: jax.Array, bits: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (ranks, centroids, scales of the columns [1, G]) of a rotated tile y [B, G].

  A value is nearest to the centroid of its sign with that rank among the upper ones, int32.
  """
  upper = centroids(bits)[2 ** (bits - 1) :]
  largest = jnp.max(jnp.abs(y), axis=0, keepdims=True)
  # In units of the largest value first: squares must neither overflow nor vanish.
  unit = relative(y, largest)
  squares = jnp.sum(jnp.square(unit), axis=0, keepdims=True)
  root = jnp.sqrt(squares / len(y))
  ranks = jnp.zeros(y.shape, jnp.int32)
  for edge in (upper[1:] + upper[:-1]) / 2:
    ranks += (jnp.abs(unit) >= root * edge).astype(jnp.int32)
  size = _by_rank(ranks, upper)
  nearest = jnp.where(y >= 0, size, -size)
  # Of signed values: their magnitudes would be an array of their own on a CPU.
  inner = jnp.sum(unit * nearest, axis=0, keepdims=True)
  return ranks, nearest, largest * (squares / jnp.where(squares > 0, inner, jnp.float32(1)))


@functools.partial(jax.jit, static_argnames=('bits', 'block'))
def eden(key: jax.Array, x: jax.Array, bits: int, block: int | None = None) -> jax.Array:
  """Returns what `eden_decode` makes of what `eden_encode` gives, [D] float32, in one go.

  A tile is rotated, rounded and rotated back while it is in the cache. With blocks of 2 or 4 values
  the last bits may differ.

  Args:
    key: of this client and use.
    x: [D] floats.
    bits: of a code, in [1, 4].
    block: a power of two; by default `block_size(D)`.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(bits=bits, at_most=4)
  block = _vector(x, block)
  words = _words(key, x.size, block)

  def there_and_back(start: jax.Array, piece: jax.Array) -> jax.Array:
    tile = _columns(piece, block)
    signs = _signs(words, start, tile.shape)
    y = hadamard(_flip(tile, signs))
    _, nearest, scale = _rounded(y, bits)
    back = hadamard(nearest * scale)
    return _flip(back, signs).reshape(-1)[: piece.size]

  return parts.replace(there_and_back, x.astype(jnp.float32), _tile(block))


@functools.partial(jax.jit, static_argnames=('bits', 'size', 'block'))
def eden_decode(
  key: jax.Array,
  codes: jax.Array,
  scale: jax.Array,
  bits: int,
  size: int,
  block: int | None = None,
) -> jax.Array:
  """Returns the estimate [size] float32 of the vector that was encoded."""
  block = block_size(size) if block is None else block
  _fits(codes, size, block, 'codes')

  def tile_of(start: jax.Array, count: int, block: int) -> jax.Array:
    tile = _value(parts.take(codes, start, count), bits).reshape(block, -1)
    return tile * parts.take(scale, start // block, count // block)[None]

  return _decode(key, size, block, tile_of)


@functools.partial(jax.jit, static_argnames=('block', 'unbiased'))
def drive_encode(
  key: jax.Array, x: jax.Array, block: int | None = None, unbiased: bool = True
) -> tuple[jax.Array, jax.Array]:
  """Returns (signs as codes 0 or 1, uint8 [padded_size(D, block)], scale float32 [blocks]).

  Args:
    key: of this client and use; the decoder needs it too.
    x: [D] floats.
    block: a power of two; by default `block_size(D)`.
    unbiased: scale ||x||² / ||Rx||_1 (unbiased, vNMSE 0.571); else ||Rx||_1 / B, of the least error
      (biased, vNMSE 1 - 2 / pi = 0.363: for error feedback).

  Raises:
    ValueError: an argument is out of range.
  """

  def code(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    largest = jnp.max(jnp.abs(y), axis=0)
    unit = relative(y, largest[None])
    total = jnp.sum(jnp.abs(unit), axis=0)
    if unbiased:
      ratio = jnp.sum(jnp.square(unit), axis=0) / jnp.where(total > 0, total, jnp.float32(1))
    else:
      ratio = total / len(y)
    return (y >= 0).astype(jnp.uint8).reshape(-1), largest * ratio

  return _encode(key, x, block, code)


@functools.partial(jax.jit, static_argnames=('size', 'block'))
def drive_decode(
  key: jax.Array, codes: jax.Array, scale: jax.Array, size: int, block: int | None = None
) -> jax.Array:
  """Returns the estimate [size] float32 of the vector that was encoded."""
  block = block_size(size) if block is None else block
  _fits(codes, size, block, 'codes')

  def tile_of(start: jax.Array, count: int, block: int) -> jax.Array:
    signs = 2 * parts.take(codes, start, count).astype(jnp.float32) - 1
    return signs.reshape(block, -1) * parts.take(scale, start // block, count // block)[None]

  return _decode(key, size, block, tile_of)
