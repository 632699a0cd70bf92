"""Random rotation, and the codecs that live on it: DRIVE and EDEN.

A rotation (random signs, then a Walsh-Hadamard transform of blocks) makes the values of any update
look normal, so that few bits serve them well.

| layer | adds | unbiased | error over ||x||² | norms |
|---|---|---|---|---|
| `rotate` | yes | exact | 0 | L2 kept |
| `drive` | no | nearly | 0.571 expected, for large blocks | L2 may grow |
| `drive(unbiased=False)` | no | no | 1 - 1 / B at most, 0.363 expected | L2 does not grow |
| `eden` | no | nearly | 0.571, 0.133, 0.0358, 0.00959 expected for 1 to 4 bits | L2 may grow |

The unbiased ones are exactly so for a uniformly random rotation, nearly for this one. Each client
rotates by a seed of its own, which the server derives, so that errors average out over clients;
`rotate` alone, whose codes add, is one rotation for all. Blocks are powers of two, chosen so that
padding costs less than 2% of any vector of 6,400 values or more.

Reference: Suresh et al. (2017), arXiv 1611.00429, section 3; Vargaftik et al. (2021), arXiv
2105.08339; Vargaftik et al. (2022), arXiv 2108.08842.
"""

import jax.numpy as jnp

from fedjax_mem.core import Bound, Bounds, Layer, tree, validate
from fedjax_mem.kernels.codes import rotate as kernel
from fedjax_mem.stages.compress import wire
from fedjax_mem.stages.compress.codec import (
  Code,
  Codec,
  Keys,
  Shapes,
  layer_of,
  size,
  split,
  unbounded,
)

_GROWS = unbounded('the scale that makes it unbiased may enlarge them')
_ONLY_L2 = Bounds(lambda ctx, bound: Bound(l2=bound.l2), 'a rotation keeps the L2 norm alone')


def _check_block(block: int | None) -> None:
  if block is not None:
    validate.integer(block=block)
    if block & (block - 1):
      raise ValueError(f'block must be a power of two, got {block!r}.')


def _block(shapes: Shapes, block: int | None) -> int:
  return kernel.block_size(size(shapes)) if block is None else block


def rotate(*, block: int | None = None) -> Layer:
  """Returns the layer that rotates updates at random and the sum back: for chains.

  On the wire: float32 values, as many as the update and its padding have.

  Args:
    block: values that are rotated together, a power of two; None: chosen by the size.

  Raises:
    ValueError: block is not a power of two.
  """
  _check_block(block)

  def encode(draws: Keys, x, shapes: Shapes) -> Code:
    return Code((), kernel.rotate(draws.round_key, x, _block(shapes, block)))

  def decode(draws: Keys, code: Code, shapes: Shapes):
    return kernel.unrotate(draws.round_key, code.rest, size(shapes), _block(shapes, block))

  left = lambda shapes: ((kernel.padded_size(size(shapes), _block(shapes, block)),),)
  return layer_of(
    Codec(
      'rotate',
      encode,
      decode,
      left,
      adds=True,
      unbiased=True,
      error=lambda shapes: 0.0,
      bounds=_ONLY_L2,
    )
  )


def drive(*, unbiased: bool = True, block: int | None = None) -> Layer:
  """Returns the layer that sends the signs of the rotated update, and a scale for each block.

  On the wire: one bit a value, and a float32 scale for each block.

  Args:
    unbiased: scale so that the expectation is right; else for the least error.
    block: values that are rotated together, a power of two; None: chosen by the size.

  Raises:
    ValueError: block is not a power of two.
  """
  _check_block(block)

  def encode(draws: Keys, x, shapes: Shapes) -> Code:
    codes, scales = kernel.drive_encode(draws.own, x, _block(shapes, block), unbiased)
    return Code((wire.Levels(codes, 1), wire.Floats(scales)), jnp.zeros(0, jnp.float32))

  def decode(draws: Keys, code: Code, shapes: Shapes):
    codes, scales = (part.values for part in code.parts)
    return kernel.drive_decode(draws.own, codes, scales, size(shapes), _block(shapes, block))

  return layer_of(
    Codec(
      'drive',
      encode,
      decode,
      unbiased=unbiased,
      error=lambda shapes: None if unbiased else 1 - 1 / _block(shapes, block),
      bounds=_GROWS if unbiased else _ONLY_L2,
    )
  )


def eden(bits: int = 2, *, block: int | None = None) -> Layer:
  """Returns the layer that sends the rotated update in 1 to 4 bits, and a scale for each block.

  On the wire: `bits` bits a value, and a float32 scale for each block.

  Args:
    bits: of a value, 1 to 4.
    block: values that are rotated together, a power of two; None: chosen by the size.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(bits=bits, at_most=4)
  _check_block(block)

  def encode(draws: Keys, x, shapes: Shapes) -> Code:
    codes, scales = kernel.eden_encode(draws.own, x, bits, _block(shapes, block))
    return Code((wire.Levels(codes, bits), wire.Floats(scales)), jnp.zeros(0, jnp.float32))

  def decode(draws: Keys, code: Code, shapes: Shapes):
    codes, scales = (part.values for part in code.parts)
    block_ = _block(shapes, block)
    return kernel.eden_decode(draws.own, codes, scales, bits, size(shapes), block_)

  def estimate(draws: Keys, x, shapes: Shapes):
    values = kernel.eden(draws.own, tree.ravel(x), bits, _block(shapes, block))
    return split(values, shapes), jnp.int32(0)

  return layer_of(Codec('eden', encode, decode, unbiased=True, bounds=_GROWS, estimate=estimate))
