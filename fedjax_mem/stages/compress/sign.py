"""Signs: one bit a value, and the mean magnitude as their scale."""

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

  Args:
    per_leaf: a scale for each array instead of one for all.

  Reference: Karimireddy et al. (2019), arXiv 1901.09847, Algorithm 1.
  """

  def block(shapes: Shapes) -> int | None:
    return None if per_leaf else size(shapes)

  def encode(draws: Keys, x, shapes: Shapes) -> Code:
    del draws
    return code_of([kernel.sign(v) for v in vectors_of(x, shapes, block(shapes))], 1)

  def decode(draws: Keys, code: Code, shapes: Shapes) -> jax.Array:
    return decoder(1, block(shapes))(draws, code, shapes)

  error = lambda shapes: 1 - 1 / sharing(shapes, block(shapes))
  return layer_of(Codec('sign', encode, decode, error=error, bounds=KEPT))
