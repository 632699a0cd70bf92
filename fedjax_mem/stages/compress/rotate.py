"""A random rotation of updates, as the first codec of a chain.

Reference: Suresh et al. (2017), arXiv 1611.00429, section 3.
"""

import jax

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
  """Returns the layer that rotates updates at random, and their sum back on the server.

  It saves no bytes. In a chain it flattens the values that the second codec encodes.

  On the wire: float32 values, those of the update and its padding.

  >>> key, codec = jax.random.key(0), rotate().fact(fm.Encodes).codec
  >>> rotated = codec.encode(Keys(key, key), jnp.eye(1, 256)[0], ((256,),)).rest
  >>> jnp.abs(rotated).max().item()
  0.0625

  Args:
    block: number of values rotated together, a power of two; None: chosen by the size.

  Raises:
    ValueError: block is not a power of two.
  """
  check_block(block)

  def encode(draws: Keys, x: jax.Array, shapes: Shapes) -> Code:
    return Code((), kernel.rotate(draws.round_key, x, block_of(shapes, block)))

  def decode(draws: Keys, code: Code, shapes: Shapes) -> jax.Array:
    width = block_of(shapes, block)
    decoded: jax.Array = kernel.unrotate(draws.round_key, code.rest, size(shapes), width)
    return decoded

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
