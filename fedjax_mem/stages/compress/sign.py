"""Signs: one bit a value, and the mean magnitude as the scale."""

import jax

from fedjax_mem.core import Layer
from fedjax_mem.kernels.codes import quantize as kernel
from fedjax_mem.stages.compress._base import (
  KEPT,
  Code,
  Codec,
  Keys,
  Shapes,
  layer_of,
  size,
)
from fedjax_mem.stages.compress._levels import code_of, decoder, sharing, vectors_of


def sign(*, per_leaf: bool = False) -> Layer:
  """Returns the layer that sends the signs, and the mean magnitude as their scale.

  On the wire: one bit a value (+ for zero), and a float32 scale.

  >>> fm.apply([[3.0, -1.0, 0.0, -4.0]], sign()).update.tolist()
  [2.0, -2.0, 2.0, -2.0]

  Args:
    per_leaf: one scale for each array; False: one for the whole update.

  Reference: Karimireddy et al. (2019), arXiv 1901.09847, Algorithm 1.
  """

  def block(shapes: Shapes) -> int | None:
    return None if per_leaf else size(shapes)

  def encode(draws: Keys, x: jax.Array, shapes: Shapes) -> Code:
    del draws
    return code_of([kernel.sign(v) for v in vectors_of(x, shapes, block(shapes))], 1)

  def decode(draws: Keys, code: Code, shapes: Shapes) -> jax.Array:
    return decoder(1, block(shapes))(draws, code, shapes)

  def error(shapes: Shapes) -> float:
    return 1 - 1 / sharing(shapes, block(shapes))

  return layer_of(Codec('sign', encode, decode, error=error, bounds=KEPT))
