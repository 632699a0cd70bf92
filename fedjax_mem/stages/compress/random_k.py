"""Values at random coordinates, which server and clients draw from a common seed.

Codes add, so a mask may follow; the server decodes the sum. Values are floats. The coordinates are
the same for all clients of a round and are not sent.

- unbiased (values times D / k): E ||decoded - x||² = (D / k - 1) ||x||²
- not scaled: biased, E ||decoded - x||² = (1 - k / D) ||x||², and no norm grows. Encoding the
  decoded vector again in the same round changes nothing. Use this one under error feedback.

Reference: Konečný et al. (2016), arXiv 1610.05492, section 3 (random mask); Stich et al. (2018),
arXiv 1809.07599.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer
from fedjax_mem.kernels.codes import random_k as kernel
from fedjax_mem.stages.compress import _sparse as sparse
from fedjax_mem.stages.compress._base import (
  KEPT,
  Code,
  Codec,
  Keys,
  Shapes,
  layer_of,
  size,
  unbounded,
)


def random_k(
  fraction: float | None = None, *, k: int | None = None, unbiased: bool = True
) -> Layer:
  """Returns the layer that sends k values of an update, at random places common to all clients.

  On the wire: k float32 values.

  >>> sorted(fm.apply(np.ones((2, 8)), random_k(0.25)).update.tolist())
  [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 4.0]

  Args:
    fraction: k / D, in (0, 1]; k is rounded, and at least 1. Give either `fraction` or `k`.
    k: number of values, from 1 to D.
    unbiased: multiply the values by D / k.

  Raises:
    ValueError: an argument is out of range; k > D is checked when the round is planned.
  """
  sparse.check(k, fraction)

  def count(shapes: Shapes) -> int:
    return sparse.resolve(size(shapes), k, fraction)

  def encode(draws: Keys, x: jax.Array, shapes: Shapes) -> Code:
    number = count(shapes)
    values = kernel.pick(x, kernel.indices(draws.round_key, x.size, number))
    return Code((), jnp.float32(x.size / number) * values if unbiased else values)

  def decode(draws: Keys, code: Code, shapes: Shapes) -> jax.Array:
    places = kernel.indices(draws.round_key, size(shapes), count(shapes))
    decoded: jax.Array = kernel.spread(code.rest, places, size(shapes))
    return decoded

  def error(shapes: Shapes) -> float:
    share = count(shapes) / size(shapes)
    return 1 / share - 1 if unbiased else 1 - share

  codec = Codec(
    'random_k',
    encode,
    decode,
    left=lambda shapes: ((count(shapes),),),
    check=lambda shapes: sparse.check_size(size(shapes), k),
    adds=True,
    unbiased=unbiased,
    error=error,
    bounds=KEPT,
  )
  if unbiased:
    codec = codec._replace(
      bounds=unbounded('it multiplies what it sends by D / k; unbiased = false does not'),
      feedback='it multiplies what it sends by D / k: set unbiased = false',
    )
  return layer_of(codec)
