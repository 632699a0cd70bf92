"""Uniform quantisation: few bits a value, rounded at random (QSGD) or to the nearest level."""

import math

import jax

from fedjax_mem.core import Layer, validate
from fedjax_mem.kernels.codes import quantize as kernel
from fedjax_mem.stages.compress._base import (
  Code,
  Codec,
  Keys,
  Shapes,
  layer_of,
)
from fedjax_mem.stages.compress._levels import ROUNDS, code_of, decoder, sharing, vectors_of


def quantize(
  bits: int = 8, *, stochastic: bool = True, block: int | None = 1024, scale: str = 'max'
) -> Layer:
  """Returns the layer that rounds each value to one of 2 ** bits - 1 levels (2 for one bit).

  On the wire: the levels in `bits` bits each, and a float32 scale for each block.

  >>> fm.apply([[3.0, -1.0, 0.5, -4.0]], quantize(bits=2, stochastic=False)).update.tolist()
  [4.0, 0.0, 0.0, -4.0]

  Args:
    bits: bits of a value, 1 to 8.
    stochastic: round at random, without bias; False: round to the nearest level.
    block: number of values that share a scale; None: all values of an array share one.
    scale: 'max', the largest magnitude, or 'l2', the L2 norm of the block (as QSGD).

  Reference: Alistarh et al. (2017), arXiv 1610.02132, section 3.1.

  Raises:
    ValueError: an argument is out of range.
  """
  steps = kernel.levels(bits) - 1
  if block is not None:
    validate.integer(block=block)
  validate.one_of(kernel.SCALES, scale=scale)

  def encode(draws: Keys, x: jax.Array, shapes: Shapes) -> Code:
    pairs = []
    for i, vector in enumerate(vectors_of(x, shapes, block)):
      if stochastic:
        key = jax.random.fold_in(draws.own, i)
        pairs.append(kernel.stochastic(key, vector, bits, scale, block))
      else:
        pairs.append(kernel.deterministic(vector, bits, scale, block))
    return code_of(pairs, bits)

  def error(shapes: Shapes) -> float:
    share = sharing(shapes, block)
    norms = scale == 'l2' and stochastic
    return min(share / steps**2, 2 * share**0.5 / steps if norms else math.inf)

  noisy = 'one bit rounded at random adds more error than there is to send'
  return layer_of(
    Codec(
      'quantize',
      encode,
      decoder(bits, block),
      unbiased=stochastic,
      error=error,
      bounds=ROUNDS,
      feedback=noisy if stochastic and bits == 1 else None,
    )
  )
