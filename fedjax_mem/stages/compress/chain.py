"""Two codecs in a row, such as rotate then quantise, or top-k then quantise.

The second encodes the rest of the first one's code. Adds: if both do. Unbiased: if both are. Error:
if the first only chooses or rotates values, the sum of both errors. On the wire: the parts of the
first, then the parts of the second.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Bound, Bounds, Context, Layer
from fedjax_mem.stages.compress import _named as named
from fedjax_mem.stages.compress._base import Code, Codec, Keys, Shapes, codec_of, layer_of, size

_LEAVE = ('top_k', 'random_k', 'rotate')


def chain(first: Layer | str | Mapping[str, Any], second: Layer | str | Mapping[str, Any]) -> Layer:
  """Returns the layer whose second codec encodes the values that the first chooses or rotates.

  >>> both = chain({'use': 'top_k', 'k': 2}, 'sign')
  >>> fm.apply([[3.0, -1.0, 2.0, -5.0]], both).update.tolist()
  [4.0, 0.0, 0.0, -4.0]

  Args:
    first: top_k, random_k or rotate, or a chain of those: a layer, its name, or a table
      {use = name, option = value, …}.
    second: any codec without a state, in one of these forms.

  Raises:
    ValueError: not codecs, or the code of the first has no rest to encode.
  """
  a = codec_of(first=named.layer(first=first))
  b = codec_of(second=named.layer(second=second))
  _check_rest(a)

  def encode(draws: Keys, x: jax.Array, shapes: Shapes) -> Code:
    one = a.encode(draws.part(0), x, shapes)
    two = b.encode(draws.part(1), one.rest, a.left(shapes))
    return Code((one.parts, two.parts), two.rest)

  def decode(draws: Keys, code: Code, shapes: Shapes) -> jax.Array:
    # Codes that add have no parts: their sum is a rest.
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
    # `a` encodes, `b` encodes and decodes, `a` decodes.
    for x in (a, b, a):
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


def _check_rest(codec: Codec) -> None:
  """Raises `ValueError` unless the codec's codes have a rest to encode."""
  if size(codec.left(((8,),))) == 0:
    raise ValueError(
      f'first must be a codec that leaves values to encode, such as {", ".join(_LEAVE)}, '
      f'got {codec.name!r}.'
    )
