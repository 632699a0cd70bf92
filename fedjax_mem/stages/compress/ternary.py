"""TernGrad: -s, 0 or s for each value, at random."""

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


def ternary(*, clip: float | None = None, block: int | None = None) -> Layer:
  """Returns the layer that sends -s, 0 or s for each value, at random: TernGrad.

  The scale s is the largest magnitude.

  On the wire: two bits a value, and a float32 scale for each array or block.

  >>> np.unique(fm.apply(np.linspace(-2.0, 2.0, 99)[None], ternary()).update).tolist()
  [-2.0, 0.0, 2.0]

  Args:
    clip: values are first clipped to `clip` times the standard deviation (about their mean) of
      those that share a scale (the paper: 2.5), which lowers the variance and adds bias; None: no
      clipping, unbiased. A value with a scale of its own is not clipped.
    block: number of values that share a scale; None: all values of an array share one.

  Reference: Wen et al. (2017), arXiv 1705.07878, equations 1 and 9.

  Raises:
    ValueError: an argument is out of range.
  """
  if clip is not None:
    validate.positive(clip=clip)
  if block is not None:
    validate.integer(block=block)

  def encode(draws: Keys, x: jax.Array, shapes: Shapes) -> Code:
    pairs = []
    for i, vector in enumerate(vectors_of(x, shapes, block)):
      pairs.append(kernel.ternary(jax.random.fold_in(draws.own, i), vector, clip, block))
    return code_of(pairs, 2)

  def error(shapes: Shapes) -> float | None:
    return None if clip is not None else sharing(shapes, block) ** 0.5 - 1

  noisy = 'three values drawn at random add more error than there is to send: give it a clip'
  return layer_of(
    Codec(
      'ternary',
      encode,
      decoder(2, block),
      unbiased=clip is None,
      error=error,
      bounds=ROUNDS,
      feedback=noisy if clip is None else None,
    )
  )
