"""DRIVE: one bit a value of the rotated update.

Reference: Vargaftik et al. (2021), arXiv 2105.08339.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, wire
from fedjax_mem.kernels.codes import rotate as kernel
from fedjax_mem.stages.compress._base import (
  Code,
  Codec,
  Keys,
  Shapes,
  layer_of,
  size,
)
from fedjax_mem.stages.compress._rotation import GROWS, ONLY_L2, block_of, check_block


def drive(*, unbiased: bool = True, block: int | None = None) -> Layer:
  """Returns the layer that sends the signs of the rotated update, and a scale for each block.

  On the wire: one bit a value, and a float32 scale for each block.

  >>> ratio = fm.apply(np.ones((1, 1000)), drive()).metrics['drive/ratio']
  >>> round(float(ratio), 1)
  24.1

  Args:
    unbiased: choose the scale that makes the codec (nearly) unbiased; False: the scale of least
      error.
    block: number of values rotated together, a power of two; None: chosen by the size.

  Raises:
    ValueError: block is not a power of two.
  """
  check_block(block)

  def encode(draws: Keys, x: jax.Array, shapes: Shapes) -> Code:
    codes, scales = kernel.drive_encode(draws.own, x, block_of(shapes, block), unbiased)
    return Code((wire.Levels(codes, 1), wire.Floats(scales)), jnp.zeros(0, jnp.float32))

  def decode(draws: Keys, code: Code, shapes: Shapes) -> jax.Array:
    codes, scales = (part.values for part in code.parts)
    width = block_of(shapes, block)
    decoded: jax.Array = kernel.drive_decode(draws.own, codes, scales, size(shapes), width)
    return decoded

  return layer_of(
    Codec(
      'drive',
      encode,
      decode,
      unbiased=unbiased,
      error=lambda shapes: None if unbiased else 1 - 1 / block_of(shapes, block),
      bounds=GROWS if unbiased else ONLY_L2,
    )
  )
