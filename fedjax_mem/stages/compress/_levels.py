"""What the codecs of few bits a value share: levels and scales on the wire, and their decoding.

None of these codes adds: each client has its own scales. The wire carries integers of b bits and
float32 scales. B is the number of values that share a scale, L the number of levels, 2 ** b - 1
(2 for one bit).

| layer | unbiased | E ||decoded - x||² <= … ||x||² | norms grow |
|---|---|---|---|
| `quantize`, stochastic | yes | B / (L - 1)²; with scale 'l2' also 2 √B / (L - 1) | yes |
| `quantize`, deterministic | no | B / (L - 1)² | yes |
| `sign` | no | 1 - 1 / B | no |
| `ternary` | yes, without `clip` | √B - 1 | yes |

The stochastic codecs are unbiased up to 2 ** -24 of a level. `sign` needs error feedback. Error
feedback needs a codec whose error is smaller than the update. One bit or three values, rounded at
random, have a larger one, so error feedback refuses them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_mem.core import wire
from fedjax_mem.kernels.codes import quantize as kernel
from fedjax_mem.stages.compress._base import (
  Code,
  Keys,
  Shapes,
  size,
  split,
  unbounded,
)

ROUNDS = unbounded('rounding may enlarge them by what depends on the number of values')


def vectors_of(x: jax.Array, shapes: Shapes, block: int | None) -> list[jax.Array]:
  """Returns the vectors that are quantised: x, in blocks, or each array, with one scale each."""
  return [v for v in split(x, shapes) if v.size] if block is None else [x]


def sharing(shapes: Shapes, block: int | None) -> int:
  """Returns B, the most values that share a scale."""
  largest = max(size((shape,)) for shape in shapes)
  return largest if block is None else min(block, size(shapes))


def decoder(bits: int, block: int | None) -> Callable[[Keys, Code, Shapes], jax.Array]:
  """Returns a codec's `decode`, for codes of `bits` bits a value."""

  def decode(draws: Keys, code: Code, shapes: Shapes) -> jax.Array:
    del draws
    levels, scales = code.parts
    if block is not None:
      decoded: jax.Array = kernel.decode(levels.values, scales.values, bits, block)
      return decoded
    vectors = vectors_of(levels.values, shapes, None)
    return jnp.concatenate(
      [kernel.decode(v, scales.values[i : i + 1], bits) for i, v in enumerate(vectors)]
    )

  return decode


def code_of(pairs: list[tuple[jax.Array, jax.Array]], bits: int) -> Code:
  """Returns the code of (levels [n], scales [s]) of vectors, one pair a vector."""
  codes, scales = (jnp.concatenate(x) for x in zip(*pairs, strict=True))
  return Code((wire.Levels(codes, bits), wire.Floats(scales)), jnp.zeros(0, jnp.float32))
