"""Two codecs, one on what the other leaves: rotate, then quantise; top-k, then quantise.

Adds: if both do. Unbiased: if both are. Error: where the first only chooses or rotates values, that
of the first plus that of the second. On the wire: the parts of the first, then those of the second.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from fedjax_mem.core import Bound, Bounds, Context, Layer
from fedjax_mem.stages.compress import _named as named
from fedjax_mem.stages.compress._base import Code, Codec, Keys, Shapes, codec_of, layer_of, size

_LEAVE = ('top_k', 'random_k', 'rotate')


def chain(first: Layer | str | Mapping[str, Any], second: Layer | str | Mapping[str, Any]) -> Layer:
  """Returns the layer whose second codec encodes the values that the first leaves.

  Args:
    first: top_k, random_k or rotate, or a chain of those: a layer, its name, or a table
      {use = name, option = value, …}.
    second: any codec without a state, likewise.

  Raises:
    ValueError: not codecs, or the first leaves nothing to encode.
  """
  a = codec_of(first=named.layer(first=first))
  b = codec_of(second=named.layer(second=second))
  if size(a.left(((8,),))) == 0:
    raise ValueError(
      f'first must be a codec that leaves values to encode, such as {", ".join(_LEAVE)}, '
      f'got {a.name!r}.'
    )

  def encode(draws: Keys, x, shapes: Shapes) -> Code:
    one = a.encode(draws.part(0), x, shapes)
    two = b.encode(draws.part(1), one.rest, a.left(shapes))
    return Code((one.parts, two.parts), two.rest)

  def decode(draws: Keys, code: Code, shapes: Shapes):
    # The sum of codes that add comes without parts.
    one, two = code.parts or ((), ())
    rest = b.decode(draws.part(1), Code(two, code.rest), a.left(shapes))
    return a.decode(draws.part(0), Code(one, rest.astype(jnp.float32)), shapes)

  def check(shapes: Shapes) -> None:
    a.check(shapes)
    b.check(a.left(shapes))

  def error(shapes: Shapes) -> float | None:
    own, further = a.error(shapes), b.error(a.left(shapes))
    scaled = a.feedback is not None
    return None if own is None or further is None or scaled else own + further

  def bounds(ctx: Context, bound: Bound) -> Bound:
    for x in (a, b, a):  # encoded, coded and decoded, decoded
      bound = x.bounds.of(ctx, bound)
    return bound

  return layer_of(
    Codec(
      f'{a.name}+{b.name}',
      encode,
      decode,
      left=lambda shapes: b.left(a.left(shapes)),
      check=check,
      adds=a.adds and b.adds,
      unbiased=a.unbiased and b.unbiased,
      error=error,
      bounds=Bounds(bounds, a.bounds.why or b.bounds.why),
      feedback=a.feedback or b.feedback,
    )
  )
