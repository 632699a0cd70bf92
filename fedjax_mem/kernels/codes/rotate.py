"""Codes of a randomly rotated vector: the rotation itself, DRIVE and EDEN, few bits a value.

The rotation is the randomised Walsh-Hadamard transform of `hadamard`, whose terms tile and block
are used here. After it, values look normal whatever they were: one set of levels serves them all.

EDEN rounds each value, in units of its block's root mean square, to the nearest of 2 ** b centroids
(Lloyd-Max for the standard normal) and sends one scale a block, ||x||² / <Rx, Q(Rx)>, that makes
the estimate unbiased for a uniform rotation; for this one only nearly so (with one bit, blocks of
512 and heavy tails, a bias of 0.6% of the norm was seen). DRIVE is its case b = 1. Relative squared
error (vNMSE) of an estimate, for large blocks: 0.571, 0.133, 0.0358, 0.00959 with 1, 2, 3, 4 bits.

Worked example: a block whose rotation is y = (5, -1, -2, 0), with one bit. The codes are signs. The
scale is ||y||² / ||y||_1 = 30 / 8 = 3.75, so the rotated estimate is (3.75, -3.75, -3.75, 3.75):

>>> ranks, nearest, scale = _rounded(jnp.array([[5.0], [-1.0], [-2.0], [0.0]]), 1)
>>> (nearest * scale)[:, 0].round(4).tolist()
[3.75, -3.75, -3.75, 3.75]

With two bits, the root mean square is 2.74, and the centroids are at 0.45 and 1.51 of it. Only 5
is nearer to the upper one (rank 1):

>>> _rounded(jnp.array([[5.0], [-1.0], [-2.0], [0.0]]), 2)[0][:, 0].tolist()
[1, 0, 0, 0]

Edge cases:

- a block of zeros: zeros
- an infinite or NaN value: NaN for its block; finite ones beyond 1e36 may overflow to that

Reference: Vargaftik et al. (2021), arXiv 2105.08339 (DRIVE); Vargaftik et al. (2022), arXiv
2108.08842 (EDEN); Max (1960) for the centroids.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.kernels.codes.hadamard import (
  block_of,
  block_size,
  columns,
  decode,
  encode,
  flip,
  hadamard,
  padded_size,
  sign_words,
  signs,
  tile_size,
)
from fedjax_mem.kernels.codes.quantize import relative
from fedjax_mem.kernels.loops import parts

# bits -> the upper half of the Lloyd-Max centroids of the standard normal, in standard deviations;
# the lower half is its mirror. Each is the mean of the values that are nearest to it: for one bit,
# E|N(0, 1)| = sqrt(2 / pi) = 0.798.
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
  rotated: jax.Array = encode(key, x, block, lambda y: y.reshape(-1))
  return rotated


@functools.partial(jax.jit, static_argnames=('size', 'block'))
def unrotate(key: jax.Array, y: jax.Array, size: int, block: int | None = None) -> jax.Array:
  """Returns the vector [size] that `rotate` made y of.

  Args:
    key: that of `rotate`.
    y: [padded_size(size, block)] float32.
    size: D.
    block: that of `rotate`.

  Raises:
    ValueError: block is not a power of two, or y is not of the size that it gives.
  """
  block = block_size(size) if block is None else block
  _fits(y, size, block, 'y')
  # A tile's values follow each other in y as they do in memory: a reshape is enough.
  return decode(key, size, block, lambda at, n, b: parts.take(y, at, n).reshape(b, -1))


def _fits(y: jax.Array, size: int, block: int, name: str) -> None:
  """Raises `ValueError` unless y has a value for each of `size`, padded to whole blocks."""
  padded = padded_size(size, block)
  if y.shape != (padded,):
    raise ValueError(
      f'{name} must be [{padded}] for {size} values in blocks of {block}, got {y.shape!r}.'
    )


def centroids(bits: int) -> np.ndarray:
  """Returns the 2 ** bits centroids, ascending float32: code i stands for the i-th.

  >>> [round(float(c), 2) for c in centroids(2)]
  [-1.51, -0.45, 0.45, 1.51]

  Args:
    bits: of a code, in [1, 4].

  Raises:
    ValueError: bits is out of range.
  """
  validate.integer(bits=bits, at_most=4)
  upper = np.array(CENTROIDS[bits], np.float32)
  return np.concatenate([-upper[::-1], upper])


def _by_rank(ranks: jax.Array, values: np.ndarray) -> jax.Array:
  """Returns values[ranks].

  Args:
    ranks: int32, of any shape, indices of values.
    values: float32, at most 8 of them.
  """
  # A chain of selections, in which the last that applies wins: rank 2 takes value 1, then value 2.
  # Unlike a gather, it is vectorised.
  out = jnp.full(ranks.shape, values[0])
  for i in range(1, len(values)):
    out = jnp.where(ranks >= i, values[i], out)
  return out


def _value(codes: jax.Array, bits: int) -> jax.Array:
  """Returns the centroids that uint8 codes of so many bits stand for, float32."""
  # By magnitude and sign: half as many selections. With 2 bits, code 0 is rank 1 below zero.
  half = 2 ** (bits - 1)
  codes = codes.astype(jnp.int32)
  above = codes >= half
  size = _by_rank(jnp.where(above, codes - half, half - 1 - codes), centroids(bits)[half:])
  return jnp.where(above, size, -size)


@functools.partial(jax.jit, static_argnames=('bits', 'block'))
def eden_encode(
  key: jax.Array, x: jax.Array, bits: int, block: int | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns (codes uint8 [padded_size(D, block)], scale float32 [blocks]): EDEN.

  Reference: Vargaftik et al. (2022), arXiv 2108.08842, Algorithm 1.

  Args:
    key: of this client, used for nothing else; the decoder needs it too. Clients with keys of
      their own have independent errors, which average out.
    x: [D] floats.
    bits: of a code, in [1, 4].
    block: a power of two; by default `block_size(D)`.

  Raises:
    ValueError: an argument is out of range.
  """
  half = 2 ** (validate.integer(bits=bits, at_most=4) - 1)

  def code(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    ranks, _, scale = _rounded(y, bits)
    # The lower half of the codes is the mirror of the upper one: with 2 bits, 0 1 | 2 3.
    codes = jnp.where(y >= 0, half + ranks, half - 1 - ranks).astype(jnp.uint8)
    return codes.reshape(-1), scale.reshape(-1)

  coded: tuple[jax.Array, jax.Array] = encode(key, x, block, code)
  return coded


def _rounded(y: jax.Array, bits: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns (ranks, nearest centroids, scales of the columns [1, G]) of a rotated tile.

  The nearest centroid has the sign of the value; its rank, int32, is among the upper half, from 0.

  Args:
    y: [B, G] float32.
    bits: of a code, in [1, 4].
  """
  upper = centroids(bits)[2 ** (bits - 1) :]
  largest = jnp.max(jnp.abs(y), axis=0, keepdims=True)
  # In units of the largest value first: squares must neither overflow nor vanish. The estimate does
  # not change: both the values and the root mean square are divided by it.
  unit = relative(y, largest)
  squares = _totals(jnp.square(unit))
  # Edges scaled by the root mean square, not values divided by it: a product for each block and
  # edge, rather than a division for each value.
  root = jnp.sqrt(squares / len(y))
  # The rank is the number of edges, midway between centroids, that a magnitude reaches: at most 7
  # comparisons. A search for the nearest would need a gather.
  ranks = jnp.zeros(y.shape, jnp.int32)
  for edge in (upper[1:] + upper[:-1]) / 2:
    ranks += (jnp.abs(unit) >= root * edge).astype(jnp.int32)
  size = _by_rank(ranks, upper)
  nearest = jnp.where(y >= 0, size, -size)
  # Products of signed values, although those of magnitudes are the same: the magnitudes would be an
  # array of their own on a CPU.
  inner = _totals(unit * nearest)
  # ||y||² / <y, Q(y)>, where y = largest * unit: one factor `largest` remains. A block of zeros has
  # the inner product 0, and is divided by 1 instead.
  return ranks, nearest, largest * (squares / jnp.where(squares > 0, inner, jnp.float32(1)))


def _totals(x: jax.Array) -> jax.Array:
  """Returns the sums of the columns of x [B, G], B a power of two, as one row [1, G].

  Added two by two: one after another, 65,536 equal values would err by 4e-4, and a scale by it.
  """
  while len(x) > 1:
    half = len(x) // 2
    x = x[:half] + x[half:]
  return x


@functools.partial(jax.jit, static_argnames=('bits', 'block'))
def eden(key: jax.Array, x: jax.Array, bits: int, block: int | None = None) -> jax.Array:
  """Returns what `eden_decode` makes of what `eden_encode` gives, [D] float32, in one pass.

  A tile is rotated, rounded and rotated back while it is in the cache. With blocks of 2 or 4 values
  the last bits may differ.

  Args:
    key: of this client, used for nothing else.
    x: [D] floats.
    bits: of a code, in [1, 4].
    block: a power of two; by default `block_size(D)`.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(bits=bits, at_most=4)
  block = block_of(x, block)
  words = sign_words(key, x.size, block)

  def there_and_back(start: jax.Array, piece: jax.Array) -> jax.Array:
    tile = columns(piece, block)
    tile_signs = signs(words, start, tile.shape)
    # Signs, then the transform; backwards the transform, which is its own inverse, then the signs.
    y = hadamard(flip(tile, tile_signs))
    _, nearest, scale = _rounded(y, bits)
    back = hadamard(nearest * scale)
    return flip(back, tile_signs).reshape(-1)[: piece.size]

  # Replaced in place: rotated values and codes of the whole vector are never in memory.
  return parts.replace(there_and_back, x.astype(jnp.float32), tile_size(block))


@functools.partial(jax.jit, static_argnames=('bits', 'size', 'block'))
def eden_decode(
  key: jax.Array,
  codes: jax.Array,
  scale: jax.Array,
  bits: int,
  size: int,
  block: int | None = None,
) -> jax.Array:
  """Returns the estimate [size] float32 of the vector that `eden_encode` encoded.

  Args:
    key: that of `eden_encode`.
    codes: [padded_size(size, block)] uint8.
    scale: [blocks] float32.
    bits: of a code, in [1, 4].
    size: D.
    block: that of `eden_encode`.

  Raises:
    ValueError: bits or the block is out of range, or codes are not of the size that it gives.
  """
  block = block_size(size) if block is None else block
  _fits(codes, size, block, 'codes')

  def tile_of(start: jax.Array, count: int, block: int) -> jax.Array:
    tile = _value(parts.take(codes, start, count), bits).reshape(block, -1)
    # A column of the tile is a block, and has one scale.
    scaled: jax.Array = tile * parts.take(scale, start // block, count // block)[None]
    return scaled

  return decode(key, size, block, tile_of)


@functools.partial(jax.jit, static_argnames=('block', 'unbiased'))
def drive_encode(
  key: jax.Array, x: jax.Array, block: int | None = None, unbiased: bool = True
) -> tuple[jax.Array, jax.Array]:
  """Returns (signs as codes 0 or 1, uint8 [padded_size(D, block)], scale float32 [blocks]): DRIVE.

  Reference: Vargaftik et al. (2021), arXiv 2105.08339, Algorithm 1.

  Args:
    key: of this client, used for nothing else; the decoder needs it too.
    x: [D] floats.
    block: a power of two; by default `block_size(D)`.
    unbiased: scale ||x||² / ||Rx||_1 (unbiased, vNMSE 0.571); else ||Rx||_1 / B, of the least error
      (biased, vNMSE 1 - 2 / pi = 0.363: for error feedback).

  Raises:
    ValueError: an argument is out of range.
  """

  def code(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    # In units of the largest value, as for EDEN.
    largest = jnp.max(jnp.abs(y), axis=0, keepdims=True)
    unit = relative(y, largest)
    total = _totals(jnp.abs(unit))
    # In the example above, ||y||² / ||y||_1 = 30 / 8; the least error is at ||y||_1 / B = 8 / 4.
    if unbiased:
      ratio = _totals(jnp.square(unit)) / jnp.where(total > 0, total, jnp.float32(1))
    else:
      ratio = total / len(y)
    return (y >= 0).astype(jnp.uint8).reshape(-1), (largest * ratio).reshape(-1)

  coded: tuple[jax.Array, jax.Array] = encode(key, x, block, code)
  return coded


@functools.partial(jax.jit, static_argnames=('size', 'block'))
def drive_decode(
  key: jax.Array, codes: jax.Array, scale: jax.Array, size: int, block: int | None = None
) -> jax.Array:
  """Returns the estimate [size] float32 of the vector that `drive_encode` encoded.

  Args:
    key: that of `drive_encode`.
    codes: [padded_size(size, block)] uint8.
    scale: [blocks] float32.
    size: D.
    block: that of `drive_encode`.

  Raises:
    ValueError: block is not a power of two, or codes are not of the size that it gives.
  """
  block = block_size(size) if block is None else block
  _fits(codes, size, block, 'codes')

  def tile_of(start: jax.Array, count: int, block: int) -> jax.Array:
    # Codes 0 and 1 are -1 and +1, times the scale of the block.
    values: jax.Array = 2 * parts.take(codes, start, count).astype(jnp.float32) - 1
    return values.reshape(block, -1) * parts.take(scale, start // block, count // block)[None]

  return decode(key, size, block, tile_of)
