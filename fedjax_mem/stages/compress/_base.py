"""What the codecs share: a code of a flat vector, its bytes, and the layer that is made of it.

A codec turns the flat float32 vector [D] of an update into parts that go on the wire as they are,
and into what is left: values that a further codec may encode (`chain`). Where nothing but such
values is sent and decoding is linear, the codes add: they are summed and decoded on the server.
Any other code is decoded in the client side, which reports what it would have taken on the wire.

What holds of every codec here:

- an update that is not finite is decoded to one that is not, so that the engine drops its client
  and names it
- a client of weight 0 takes no part: it sends nothing and keeps its state
- an update of zeros is decoded to zeros, and takes the bytes of any other
- arithmetic is float32; the leaves get their dtypes back

Metrics: `ratio`, the bytes of the message without the codec over those with it, and the bytes sent
as `bytes_up_high` * 65536 + `bytes_up_low` (int32 sums of a cohort's bytes would overflow), see
`total_bytes`. Sizes may depend on the updates (gaps between indices), so no epsilon covers them.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import (
  Bound,
  Bounds,
  Context,
  Encodes,
  IncompatibleStages,
  Layer,
  Mean,
  Message,
  Stage,
  Total,
  tree,
  wire,
)

Tree = Any
Shapes = tuple[tuple[int, ...], ...]
_UNIT = 2**16

for _kind, _meta in ((wire.Raw, []), (wire.Floats, []), (wire.Levels, ['bits'])):
  jax.tree_util.register_dataclass(_kind, ['values'], _meta)
jax.tree_util.register_dataclass(wire.Indices, ['values'], ['size'])


class Keys(NamedTuple):
  """Where a codec's random draws come from.

  Attributes:
    own: PRNG key of the client, which the receiver can derive.
    round_key: PRNG key of everyone in the round.
  """

  own: jax.Array
  round_key: jax.Array

  def part(self, number: int) -> 'Keys':
    """Returns the draws of one codec of several."""
    return Keys(*(jax.random.fold_in(key, number) for key in self))


class Code(NamedTuple):
  """A vector, encoded.

  Attributes:
    parts: of the message, nested as the codec likes.
    rest: [n] float32, sent as they are unless another codec encodes them; [0] if nothing is left.
  """

  parts: tuple[Any, ...]
  rest: jax.Array


def _nothing_left(shapes: Shapes) -> Shapes:
  del shapes
  return ((0,),)


def unbounded(why: str) -> Bounds:
  """Returns the fact that leaves every norm unknown, and says why, a clause."""
  return Bounds(lambda ctx, bound: Bound(), why)


# Of codes that enlarge no norm, and of codecs that state nothing.
KEPT = Bounds(lambda ctx, bound: bound)
UNSTATED = unbounded('its codec states no bounds')


def _any(shapes: Shapes) -> None:
  del shapes


class Codec(NamedTuple):
  """How a flat vector is encoded and decoded; `shapes` are those of the leaves it was made of.

  Attributes:
    name: of the method.
    encode: (draws, x [D] float32, shapes) -> code.
    decode: (draws, code, shapes) -> [D] float32; the draws are those of `encode`.
    left: shapes -> shapes of the code's `rest`.
    check: raises `ValueError` for shapes that the codec cannot encode.
    adds: whether codes add; then they have no parts, and decoding draws from `round_key` alone.
    unbiased: whether the expectation of what is decoded is what was encoded.
    error: shapes -> what E ||decoded - x||² is at most, over ||x||²; None: not stated.
    bounds: bound of x -> bound of what is decoded; of a code that adds, of the code as well;
      unknown where it is not stated.
    feedback: why error feedback would diverge, or None.
    estimate: (draws, x, shapes) -> (what `decode` makes of the code of x, the bytes of the code's
      indices, int32), without making the code; x and what is decoded are lists of the arrays' flat
      vectors [n] float32; not finite where x is not. None: by `encode` and `decode`. Needed for
      speed alone, by codecs that do not add.
  """

  name: str
  encode: Callable[[Keys, jax.Array, Shapes], Code]
  decode: Callable[[Keys, Code, Shapes], jax.Array]
  left: Callable[[Shapes], Shapes] = _nothing_left
  check: Callable[[Shapes], None] = _any
  adds: bool = False
  unbiased: bool = False
  error: Callable[[Shapes], float | None] = lambda shapes: None
  bounds: Bounds = UNSTATED
  feedback: str | None = None
  estimate: Callable[[Keys, list, Shapes], tuple[list, jax.Array]] | None = None


class Exchange(NamedTuple):
  """A code that only its layer can make, since it has a state: what the round is told of it.

  Attributes:
    name: of the method.
    adds: as in `Codec`.
    feedback: likewise.
  """

  name: str
  adds: bool = False
  feedback: str | None = None


def size(shapes: Shapes) -> int:
  """Returns D, the number of values in all leaves."""
  return sum(math.prod(shape) for shape in shapes)


def split(x: jax.Array, shapes: Shapes) -> list[jax.Array]:
  """Returns the flat vectors of the leaves."""
  ends = np.cumsum([math.prod(shape) for shape in shapes])
  return [x[end - math.prod(shape) : end] for shape, end in zip(shapes, ends, strict=True)]


def flat(update: Tree) -> tuple[jax.Array, Shapes]:
  """Returns (all values [D] float32, shapes of the leaves)."""
  return tree.ravel(update), tuple(x.shape for x in jax.tree.leaves(update))


def unflat(x: jax.Array, like: Tree) -> Tree:
  """Returns the values [D] as a tree of the shapes and dtypes of `like`."""
  return tree.unravel(x, like)


def parts_of(code: Code) -> list[wire.Part]:
  """Returns the parts of the code's message, what is left as the last."""
  parts = jax.tree.leaves(code.parts, is_leaf=lambda x: isinstance(x, wire.Part))
  return [*parts, wire.Floats(code.rest)] if code.rest.size else parts


def nbytes(parts: list[wire.Part], aux: Tree = ()) -> jax.Array:
  """Returns the bytes of a message, int32, computed from the data where they depend on it."""
  indices = [_indices_size(part) for part in parts if isinstance(part, wire.Indices)]
  return sum(indices, jnp.int32(fixed_size(parts, aux)))


def fixed_size(parts: list[wire.Part], aux: Tree = ()) -> int:
  """Returns the bytes of a message, indices left out: its values may be shapes."""
  beside = tree.size(aux)
  said = sum(wire.fixed_size(part) for part in parts)
  return wire.OVERHEAD + said + (wire.PART + 4 * beside if beside else 0)


def _indices_size(part: wire.Indices) -> jax.Array:
  """Returns the bytes of indices in their shorter form."""
  before = jnp.concatenate([jnp.full(1, -1, jnp.int32), part.values[:-1]])
  gaps = part.values - before - 1
  more = sum((jnp.sum(gaps >= step, dtype=jnp.int32) for step in wire.STEPS), jnp.int32(gaps.size))
  return jnp.minimum(more, jnp.int32(wire.bitmap_size(part.size)))


def mask_size(words: jax.Array, size: int) -> jax.Array:
  """Returns the bytes of indices in their shorter form; words are a mask, [ceil(size / 32)]."""
  counts = jax.lax.population_count(words).astype(jnp.int32)
  ends = jnp.cumsum(counts)
  before = ends - counts
  # Gaps in a word are short. Its first bit has a long one if as many bits are set before it as are
  # before the place that is a step (whole words) earlier: under the same bits, in a word before.
  under = (words & (~words + 1)) - 1
  total = ends[-1]
  for step in wire.STEPS:
    back = step // 32
    if back < words.size:
      earlier = jax.lax.population_count(words[:-back] & under[back:]).astype(jnp.int32)
      long = (words[back:] != 0) & (before[back:] == before[:-back] + earlier)
      total += jnp.sum(long, dtype=jnp.int32)
  return jnp.minimum(total, jnp.int32(wire.bitmap_size(size)))


def dense_size(update: Tree, aux: Tree = ()) -> int:
  """Returns the bytes of a message that is not encoded: its arrays in their own dtypes."""
  beside = tree.size(aux)
  return wire.OVERHEAD + wire.PART + tree.nbytes(update) + (wire.PART + 4 * beside) * bool(beside)


def to_bytes(code: Code, weight: float, aux: Tree = ()) -> bytes:
  """Returns a client's message as the wire carries it (NumPy, outside of what is compiled)."""
  parts = parts_of(jax.tree.map(np.asarray, code))
  beside = [np.asarray(x, np.float32).reshape(-1) for x in jax.tree.leaves(aux)]
  return wire.encode(weight, [*parts, wire.Floats(np.concatenate(beside))] if beside else parts)


def from_bytes(codec: Codec, data: bytes, shapes: Shapes) -> tuple[Code, float]:
  """Returns (code, weight) of a message without aux.

  Raises:
    ValueError: it is damaged, or not what this codec writes for these shapes.
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  x = jax.ShapeDtypeStruct((size(shapes),), jnp.float32)
  like = jax.eval_shape(lambda own, x: codec.encode(Keys(own, own), x, shapes), key, x)
  packet = wire.decode(data, [wire.spec(part) for part in parts_of(like)])
  leaves, structure = jax.tree.flatten(like)
  values = [part.values for part in packet.parts]
  values += [np.zeros(0, np.float32)] * (len(leaves) - len(values))
  cast = [jnp.asarray(v, x.dtype) for v, x in zip(values, leaves, strict=True)]
  return jax.tree.unflatten(structure, cast), packet.weight


def sent(name: str, value: jax.Array, count: jax.Array) -> dict[str, Total]:
  """Returns the metrics of `count` messages of `value` bytes each; see `total_bytes`."""
  high, low = value // _UNIT, value % _UNIT
  count = count.astype(jnp.int32)
  return {f'{name}_high': Total(count * high), f'{name}_low': Total(count * low)}


def total_bytes(metrics: Mapping[str, Any], name: str) -> Any:
  """Returns the exact bytes in the metrics of a round (or of many), summed over layers.

  Those up are of all clients, those down of one message to one of them.

  Args:
    metrics: 'layer/metric' -> numbers, as a simulation returns them.
    name: 'bytes_up', 'bytes_down' or 'bytes_more_down'.

  Returns:
    Integers of the metrics' shape, or None if no layer reports them.
  """
  total = None
  for key, high in metrics.items():
    if key.endswith(f'/{name}_high'):
      low = metrics[f'{key.removesuffix("high")}low']
      here = np.asarray(high, np.int64) * _UNIT + np.asarray(low, np.int64)
      total = here if total is None else total + here
  return total


def reported(update: Tree, aux: Tree, value: jax.Array, on: jax.Array) -> dict[str, Any]:
  """Returns the metrics of one client's message of `value` bytes, if it is `on`."""
  takes = on.astype(jnp.float32)
  dense = jnp.float32(dense_size(update, aux))
  return {
    **sent('bytes_up', value, on),
    'ratio': Mean(takes * dense, takes * value.astype(jnp.float32)),
  }


def check_floats(name: str, ctx: Context) -> Shapes:
  """Returns the shapes of the leaves of what a layer receives, all floats.

  Raises:
    IncompatibleStages: a leaf is not.
  """
  leaves = jax.tree.leaves(ctx.spec.update)
  other = [x for x in leaves if not jnp.issubdtype(x.dtype, jnp.floating)]
  if other or not leaves:
    found = f'{other[0].dtype}{list(other[0].shape)}' if other else 'nothing'
    raise IncompatibleStages(
      f'{name!r} encodes arrays of floats, and its update holds {found}: leave such arrays out of '
      'the parameters.'
    )
  return tuple(x.shape for x in leaves)


@dataclasses.dataclass(frozen=True)
class Encoder:
  """The client side of a codec's layer.

  Attributes:
    codec: the codec.
  """

  codec: Codec

  def __call__(self, ctx: Context, message: Message, state: Tree):
    """Returns (message, state, metrics), as every side of a layer."""
    codec, draws = self.codec, Keys(ctx.key, ctx.round_key)
    shapes = tuple(x.shape for x in jax.tree.leaves(message.update))
    on = message.weight > 0
    # Zeros are decoded to zeros: what is encoded is left out, not what comes of it, which would be
    # one more pass over memory.
    message = message._replace(update=tree.keep(on, message.update))
    if codec.estimate:
      update, value = self._estimated(draws, message, shapes)
    else:
      x = tree.ravel(message.update)
      code = codec.encode(draws, x, shapes)
      values = code.rest if codec.adds else codec.decode(draws, code, shapes)
      values = jnp.where(tree.finite(x), values, jnp.float32(jnp.nan))
      update = values if codec.adds else tree.unravel(values, message.update)
      value = nbytes(parts_of(code), message.aux)
    metrics = reported(message.update, message.aux, value, on)
    return message._replace(update=update), state, metrics

  def _estimated(self, draws: Keys, message: Message, shapes: Shapes) -> tuple[Tree, jax.Array]:
    """Returns (the update as it is decoded, bytes of the message) by the codec's `estimate`."""
    codec = self.codec
    leaves, structure = jax.tree.flatten(message.update)
    vectors = [x.astype(jnp.float32).reshape(-1) for x in leaves]
    values, indices = codec.estimate(draws, vectors, shapes)  # type: ignore[misc]
    decoded = [v.reshape(x.shape).astype(x.dtype) for v, x in zip(values, leaves, strict=True)]
    whole = jax.ShapeDtypeStruct((size(shapes),), jnp.float32)
    like = jax.eval_shape(lambda x: codec.encode(draws, x, shapes), whole)
    sent = indices + fixed_size(parts_of(like), message.aux)
    return jax.tree.unflatten(structure, decoded), sent

  def init(self, ctx: Context) -> Tree:
    """Returns the state of a client, which is empty.

    Raises:
      ValueError: the codec cannot encode what the layer receives.
    """
    self.codec.check(check_floats(self.codec.name, ctx))
    return ()


def layer_of(codec: Codec) -> Layer:
  """Returns the layer of a codec."""

  def server(ctx: Context, message: Message, state: Tree):
    shapes = tuple(x.shape for x in jax.tree.leaves(ctx.spec.update))
    draws = Keys(ctx.round_key, ctx.round_key)
    whole = codec.decode(draws, Code((), message.update), shapes)
    return message._replace(update=unflat(whole, ctx.spec.update)), state, {}

  encoder = Encoder(codec)
  return Layer(
    codec.name,
    client=Stage(encoder, encoder.init, (codec.bounds, Encodes(codec))),
    server=Stage(server, facts=(codec.bounds,)) if codec.adds else None,
  )


def codec_of(**named: Any) -> Codec:
  """Returns the codec of a layer made by one of the factories here.

  Raises:
    ValueError: it is another layer.
  """
  ((name, layer),) = named.items()
  fact = layer.fact(Encodes) if isinstance(layer, Layer) else None
  if fact is None or not isinstance(fact.codec, Codec):
    raise ValueError(
      f'{name} must be a codec such as top_k or quantize, without error feedback or a state, '
      f'got {layer.name if isinstance(layer, Layer) else layer!r}.'
    )
  return fact.codec
