"""A random rotation of updates, for chains.

Reference: Suresh et al. (2017), arXiv 1611.00429, section 3.
"""

from fedjax_mem.core import Layer
from fedjax_mem.kernels.codes import hadamard
from fedjax_mem.kernels.codes import rotate as kernel
from fedjax_mem.stages.compress._base import (
  Code,
  Codec,
  Keys,
  Shapes,
  layer_of,
  size,
)
from fedjax_mem.stages.compress._rotation import ONLY_L2, block_of, check_block


def rotate(*, block: int | None = None) -> Layer:
  """Returns the layer that rotates updates at random and the sum back: for chains.

  On the wire: float32 values, as many as the update and its padding have.

  Args:
    block: values that are rotated together, a power of two; None: chosen by the size.

  Raises:
    ValueError: block is not a power of two.
  """
  check_block(block)

  def encode(draws: Keys, x, shapes: Shapes) -> Code:
    return Code((), kernel.rotate(draws.round_key, x, block_of(shapes, block)))

  def decode(draws: Keys, code: Code, shapes: Shapes):
    return kernel.unrotate(draws.round_key, code.rest, size(shapes), block_of(shapes, block))

  left = lambda shapes: ((hadamard.padded_size(size(shapes), block_of(shapes, block)),),)
  return layer_of(
    Codec(
      'rotate',
      encode,
      decode,
      left,
      adds=True,
      unbiased=True,
      error=lambda shapes: 0.0,
      bounds=ONLY_L2,
    )
  )
