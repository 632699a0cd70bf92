"""Few bits a value: uniform levels, signs, ternary values, each with a scale that is sent.

None of these codes adds (each client has scales of its own), and what is sent are integers of b
bits and float32 scales. B stands for the values that share a scale, L for the levels, 2 ** b - 1
(2 for one bit).

| layer | unbiased | E ||decoded - x||² <= … ||x||² | norms grow |
|---|---|---|---|
| `quantize`, stochastic | yes | B / (L - 1)²; with scale 'l2' also 2 √B / (L - 1) | yes |
| `quantize`, deterministic | no | B / (L - 1)² | yes |
| `sign` | no | 1 - 1 / B | no |
| `ternary` | yes, without `clip` | √B - 1 | yes |

The stochastic ones are unbiased up to 2 ** -24 of a level. `sign` needs error feedback. Under error
feedback a codec must send less error than it was given: one bit or three values, rounded at random,
do not, and are refused there.
"""

import math

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, validate
from fedjax_mem.kernels.codes import quantize as kernel
from fedjax_mem.stages.compress import wire
from fedjax_mem.stages.compress.codec import (
  KEPT,
  Code,
  Codec,
  Keys,
  Shapes,
  layer_of,
  size,
  split,
  unbounded,
)

_ROUNDS = unbounded('rounding may enlarge them by what depends on the number of values')


def _vectors(x: jax.Array, shapes: Shapes, block: int | None) -> list[jax.Array]:
  """Returns what is quantised at a time: all, in blocks, or each array with one scale."""
  return [v for v in split(x, shapes) if v.size] if block is None else [x]


def _share(shapes: Shapes, block: int | None) -> int:
  """Returns B, the most values that share a scale."""
  largest = max(size((shape,)) for shape in shapes)
  return largest if block is None else min(block, size(shapes))


def _decode(bits: int, block: int | None):
  def decode(draws: Keys, code: Code, shapes: Shapes) -> jax.Array:
    del draws
    levels, scales = code.parts
    if block is not None:
      return kernel.decode(levels.values, scales.values, bits, block)
    vectors = _vectors(levels.values, shapes, None)
    return jnp.concatenate(
      [kernel.decode(v, scales.values[i : i + 1], bits) for i, v in enumerate(vectors)]
    )

  return decode


def _code(pairs: list[tuple[jax.Array, jax.Array]], bits: int) -> Code:
  codes, scales = (jnp.concatenate(x) for x in zip(*pairs, strict=True))
  return Code((wire.Levels(codes, bits), wire.Floats(scales)), jnp.zeros(0, jnp.float32))


def quantize(
  bits: int = 8, *, stochastic: bool = True, block: int | None = 1024, scale: str = 'max'
) -> Layer:
  """Returns the layer that rounds each value to one of 2 ** bits - 1 levels (2 for one bit).

  On the wire: the levels in `bits` bits each, and a float32 scale for each block.

  Args:
    bits: of a value, 1 to 8.
    stochastic: round at random so that the expectation is right; else to the nearest level.
    block: values that share a scale; None: those of each array.
    scale: 'max', the largest magnitude, or 'l2', the norm of the block (as QSGD).

  Reference: Alistarh et al. (2017), arXiv 1610.02132, section 3.1.

  Raises:
    ValueError: an argument is out of range.
  """
  steps = kernel.levels(bits) - 1
  if block is not None:
    validate.integer(block=block)
  validate.one_of(kernel.SCALES, scale=scale)

  def encode(draws: Keys, x, shapes: Shapes) -> Code:
    pairs = []
    for i, vector in enumerate(_vectors(x, shapes, block)):
      if stochastic:
        key = jax.random.fold_in(draws.own, i)
        pairs.append(kernel.stochastic(key, vector, bits, scale, block))
      else:
        pairs.append(kernel.deterministic(vector, bits, scale, block))
    return _code(pairs, bits)

  def error(shapes: Shapes) -> float:
    share = _share(shapes, block)
    norms = scale == 'l2' and stochastic
    return min(share / steps**2, 2 * share**0.5 / steps if norms else math.inf)

  noisy = 'one bit rounded at random adds more error than there is to send'
  return layer_of(
    Codec(
      'quantize',
      encode,
      _decode(bits, block),
      unbiased=stochastic,
      error=error,
      bounds=_ROUNDS,
      feedback=noisy if stochastic and bits == 1 else None,
    )
  )


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
    return _code([kernel.sign(v) for v in _vectors(x, shapes, block(shapes))], 1)

  def decode(draws: Keys, code: Code, shapes: Shapes) -> jax.Array:
    return _decode(1, block(shapes))(draws, code, shapes)

  error = lambda shapes: 1 - 1 / _share(shapes, block(shapes))
  return layer_of(Codec('sign', encode, decode, error=error, bounds=KEPT))


def ternary(*, clip: float | None = None, block: int | None = None) -> Layer:
  """Returns the layer that sends -s, 0 or s for each value, at random: TernGrad.

  On the wire: two bits a value, and a float32 scale for each array or block.

  Args:
    clip: None, or values are first clipped to so many of their root mean square (the paper: 2.5):
      less noise, and biased.
    block: values that share a scale; None: those of each array.

  Reference: Wen et al. (2017), arXiv 1705.07878, equations 1 and 9.

  Raises:
    ValueError: an argument is out of range.
  """
  if clip is not None:
    validate.positive(clip=clip)
  if block is not None:
    validate.integer(block=block)

  def encode(draws: Keys, x, shapes: Shapes) -> Code:
    vectors = enumerate(_vectors(x, shapes, block))
    fold = lambda i: jax.random.fold_in(draws.own, i)
    return _code([kernel.ternary(fold(i), v, clip, block) for i, v in vectors], 2)

  error = lambda shapes: None if clip is not None else _share(shapes, block) ** 0.5 - 1
  noisy = 'three values drawn at random add more error than there is to send: give it a clip'
  return layer_of(
    Codec(
      'ternary',
      encode,
      _decode(2, block),
      unbiased=clip is None,
      error=error,
      bounds=_ROUNDS,
      feedback=noisy if clip is None else None,
    )
  )
