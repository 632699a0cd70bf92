"""Values at random coordinates that server and clients draw from a common seed.

Adds: yes, so it may sit under a mask; the server decodes the sum. Floats. The coordinates are the
same for all clients of a round and are not sent.

- unbiased (values times D / k): E ||decoded - x||² = (D / k - 1) ||x||²
- not scaled: biased, E ||decoded - x||² = (1 - k / D) ||x||², no norm grows, and encoding what was
  decoded changes nothing in the same round: for error feedback

Reference: Konečný et al. (2016), arXiv 1610.05492, section 3 (random mask); Stich et al. (2018),
arXiv 1809.07599.
"""

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
  """Returns the layer that sends k values of an update, at the same random places for everyone.

  On the wire: k float32 values.

  Args:
    fraction: k / D, in (0, 1], rounded, at least one value; or
    k: how many values, from 1 to D.
    unbiased: multiply by D / k.

  Raises:
    ValueError: an argument is out of range; k > D is told when the round is planned.
  """
  sparse.check(k, fraction)
  count = lambda shapes: sparse.resolve(size(shapes), k, fraction)

  def encode(draws: Keys, x, shapes: Shapes) -> Code:
    number = count(shapes)
    values = kernel.pick(x, kernel.indices(draws.round_key, x.size, number))
    return Code((), jnp.float32(x.size / number) * values if unbiased else values)

  def decode(draws: Keys, code: Code, shapes: Shapes):
    places = kernel.indices(draws.round_key, size(shapes), count(shapes))
    return kernel.spread(code.rest, places, size(shapes))

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
