"""EDEN: one to four bits a value of the rotated update.

Reference: Vargaftik et al. (2022), arXiv 2108.08842.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, tree, validate, wire
from fedjax_mem.kernels.codes import rotate as kernel
from fedjax_mem.stages.compress._base import (
  Code,
  Codec,
  Keys,
  Shapes,
  Vectors,
  layer_of,
  size,
  split,
)
from fedjax_mem.stages.compress._rotation import GROWS, block_of, check_block


def eden(bits: int = 2, *, block: int | None = None) -> Layer:
  """Returns the layer that sends the rotated update in 1 to 4 bits, and a scale for each block.

  On the wire: `bits` bits a value, and a float32 scale for each block.

  >>> ratio = fm.apply(np.ones((1, 1000)), eden(bits=4)).metrics['eden/ratio']
  >>> round(float(ratio), 1)
  7.3

  Args:
    bits: bits of a value, 1 to 4.
    block: number of values rotated together, a power of two; None: chosen by the size.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(bits=bits, at_most=4)
  check_block(block)

  def encode(draws: Keys, x: jax.Array, shapes: Shapes) -> Code:
    codes, scales = kernel.eden_encode(draws.own, x, bits, block_of(shapes, block))
    return Code((wire.Levels(codes, bits), wire.Floats(scales)), jnp.zeros(0, jnp.float32))

  def decode(draws: Keys, code: Code, shapes: Shapes) -> jax.Array:
    codes, scales = (part.values for part in code.parts)
    width = block_of(shapes, block)
    decoded: jax.Array = kernel.eden_decode(draws.own, codes, scales, bits, size(shapes), width)
    return decoded

  def estimate(draws: Keys, x: Vectors, shapes: Shapes) -> tuple[Vectors, jax.Array]:
    values = kernel.eden(draws.own, tree.ravel(x), bits, block_of(shapes, block))
    return split(values, shapes), jnp.int32(0)

  return layer_of(Codec('eden', encode, decode, unbiased=True, bounds=GROWS, estimate=estimate))
