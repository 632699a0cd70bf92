"""What the codecs share: the code of a flat vector, its bytes, and the layer made of a codec.

A codec turns the flat float32 vector [D] of an update into a `Code`: parts, which are sent as they
are, and a rest, values that a second codec may encode (`chain`). Codes add if they have no parts
and decoding is linear: they are then summed, and the server decodes the sum. Any other code is
decoded in the client side, which reports the bytes that the code takes on the wire.

Every codec here keeps these rules:

- an update that is not finite is decoded to one that is not finite, so that the engine drops its
  client and names it
- a client of weight 0 takes no part: it sends nothing, and keeps its state
- an update of zeros is decoded to zeros; its bytes are counted like those of any other update
- arithmetic is float32; the leaves get their dtypes back

Metrics: `ratio`, the bytes of the message without the codec over its bytes with it, and the bytes
sent, `bytes_up_high` * 65536 + `bytes_up_low` (an int32 sum of a cohort's bytes would overflow);
see `total_bytes`. Sizes may depend on the updates (gaps between indices): no epsilon covers them.
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
  Metrics,
  Stage,
  Total,
  Tree,
  keys,
  tree,
  wire,
)
from fedjax_mem.stages.compress import _tap

Shapes = tuple[tuple[int, ...], ...]
Vectors = list[jax.Array]  # the leaves' flat vectors, [n] float32
_UNIT = 2**16  # bytes are reported as high * _UNIT + low

# Parts are pytrees, so that codes pass through jit and vmap.
for _kind, _meta in ((wire.Raw, []), (wire.Floats, []), (wire.Levels, ['bits'])):
  jax.tree_util.register_dataclass(_kind, ['values'], _meta)
jax.tree_util.register_dataclass(wire.Indices, ['values'], ['size'])


class Keys(NamedTuple):
  """Where a codec's random draws come from.

  Attributes:
    own: PRNG key of the client, which the server can derive.
    round_key: PRNG key of the round, the same for all clients and the server.
  """

  own: jax.Array
  round_key: jax.Array

  def part(self, number: int) -> 'Keys':
    """Returns the keys of one codec of several."""
    return Keys(*(jax.random.fold_in(key, number) for key in self))


class Code(NamedTuple):
  """An encoded vector.

  Attributes:
    parts: parts of the message, a tree of `wire.Part`s.
    rest: [n] float32, values sent as they are unless another codec encodes them; [0] if there are
      none.
  """

  parts: tuple[Any, ...]
  rest: jax.Array


def unbounded(why: str) -> Bounds:
  """Returns the fact that every norm is unknown; `why` is the reason, a clause."""
  return Bounds(lambda ctx, bound: Bound(), why)


# KEPT: for codecs that enlarge no norm. UNSTATED: the default of a `Codec`.
KEPT = Bounds(lambda ctx, bound: bound)
UNSTATED = unbounded('its codec states no bounds')


class Codec(NamedTuple):
  """How a flat vector is encoded and decoded; `shapes` are the shapes of the update's leaves.

  Attributes:
    name: name of the method.
    encode: (draws, x [D] float32, shapes) -> code.
    decode: (draws, code, shapes) -> [D] float32; the draws are those of `encode`.
    left: shapes -> shapes of the code's `rest`.
    check: raises `ValueError` for shapes that the codec cannot encode.
    adds: whether codes add. Such a code has no parts, and is decoded with `round_key` only.
    unbiased: whether the expectation of the decoded vector is x.
    error: shapes -> an upper bound of E ||decoded - x||² / ||x||²; None: not stated.
    bounds: bound of x -> bound of the decoded vector, and of the code too if codes add; unknown
      unless stated.
    feedback: why error feedback would diverge, or None.
    estimate: (draws, x, shapes) -> (the decoded vector, bytes of the code's indices, int32),
      computed without the code, for speed; only for codecs that do not add. x and the decoded
      vector are lists of the leaves' flat vectors [n] float32. The decoded vector is not finite
      where x is not. None: `encode` and `decode` are used.
  """

  name: str
  encode: Callable[[Keys, jax.Array, Shapes], Code]
  decode: Callable[[Keys, Code, Shapes], jax.Array]
  left: Callable[[Shapes], Shapes] = lambda shapes: ((0,),)
  check: Callable[[Shapes], None] = lambda shapes: None
  adds: bool = False
  unbiased: bool = False
  error: Callable[[Shapes], float | None] = lambda shapes: None
  bounds: Bounds = UNSTATED
  feedback: str | None = None
  estimate: Callable[[Keys, Vectors, Shapes], tuple[Vectors, jax.Array]] | None = None


class Exchange(NamedTuple):
  """What a layer states of a code that depends on its state, instead of a `Codec`.

  Attributes:
    name: name of the method.
    adds: as in `Codec`.
    feedback: as in `Codec`.
  """

  name: str
  adds: bool = False
  feedback: str | None = None


def size(shapes: Shapes) -> int:
  """Returns D, the number of values in all leaves."""
  return sum(math.prod(shape) for shape in shapes)


def split(x: jax.Array, shapes: Shapes) -> list[jax.Array]:
  """Returns the flat vectors of the leaves, slices of x [D]."""
  ends = np.cumsum([math.prod(shape) for shape in shapes])
  return [x[end - math.prod(shape) : end] for shape, end in zip(shapes, ends, strict=True)]


def flat(update: Tree) -> tuple[jax.Array, Shapes]:
  """Returns (all values [D] float32, shapes of the leaves)."""
  return tree.ravel(update), tuple(x.shape for x in jax.tree.leaves(update))


def unflat(x: jax.Array, like: Tree) -> Tree:
  """Returns the values [D] as a tree of the shapes and dtypes of `like`."""
  return tree.unravel(x, like)


def parts_of(code: Code) -> list[wire.Part]:
  """Returns the parts of the code's message; the rest, if there is one, is the last."""
  parts = jax.tree.leaves(code.parts, is_leaf=lambda x: isinstance(x, wire.Part))
  return [*parts, wire.Floats(code.rest)] if code.rest.size else parts


def nbytes(parts: list[wire.Part], aux: Tree = ()) -> jax.Array:
  """Returns the bytes of a message, int32; those of indices depend on the indices' values."""
  indices = [_indices_size(part) for part in parts if isinstance(part, wire.Indices)]
  return sum(indices, jnp.int32(fixed_size(parts, aux)))


def fixed_size(parts: list[wire.Part], aux: Tree = ()) -> int:
  """Returns the bytes of a message without its indices; arrays or their shapes will do."""
  extra = tree.size(aux)
  encoded = sum(wire.fixed_size(part) for part in parts)
  return wire.OVERHEAD + encoded + (wire.PART + 4 * extra if extra else 0)


def _indices_size(part: wire.Indices) -> jax.Array:
  """Returns the bytes of indices, as gaps or as a bitmap, whichever is shorter."""
  before = jnp.concatenate([jnp.full(1, -1, jnp.int32), part.values[:-1]])
  gaps = part.values - before - 1
  # A gap takes one byte, and one more for each of `wire.STEPS` that it reaches.
  more = sum((jnp.sum(gaps >= step, dtype=jnp.int32) for step in wire.STEPS), jnp.int32(gaps.size))
  return jnp.minimum(more, jnp.int32(wire.bitmap_size(part.size)))


def mask_size(words: jax.Array, size: int) -> jax.Array:
  """Returns the bytes of indices in [0, size), as gaps or as a bitmap, whichever is shorter.

  Words are [ceil(size / 32)] uint32; bit i of word w is set if index 32 w + i is sent.
  """
  counts = jax.lax.population_count(words).astype(jnp.int32)
  ends = jnp.cumsum(counts)
  before = ends - counts
  # A step is a whole number of words, so only the first set bit of a word can end a gap that long.
  # It does if no bit is set in the `step` places before it, that is, if the number of set bits
  # before it equals the number before the same bit `step / 32` words earlier.
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
  extra = tree.size(aux)
  return wire.OVERHEAD + wire.PART + tree.nbytes(update) + (wire.PART + 4 * extra) * bool(extra)


def to_bytes(code: Code, weight: float, aux: Tree = ()) -> bytes:
  """Returns a client's message in the wire format (NumPy, not inside a compiled function)."""
  parts = parts_of(jax.tree.map(np.asarray, code))
  extra = [np.asarray(x, np.float32).reshape(-1) for x in jax.tree.leaves(aux)]
  return wire.encode(weight, [*parts, wire.Floats(np.concatenate(extra))] if extra else parts)


def from_bytes(codec: Codec, data: bytes, shapes: Shapes) -> tuple[Code, float]:
  """Returns (code, weight) of a message without aux.

  Raises:
    ValueError: the message is damaged, or not what this codec writes for these shapes.
  """
  key, x = jax.eval_shape(lambda: (keys.seed_key(0), jnp.zeros(size(shapes), jnp.float32)))
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

  `bytes_up` and `bytes_more_down` are sums over clients; `bytes_down` is one message to one client.

  >>> made = fm.apply([[3.0, -1.0, 0.5, -4.0]], fm.stages.compress.top_k(k=2))
  >>> int(total_bytes(made.metrics, 'bytes_up'))
  52

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
  """Returns the metrics of one client's message of `value` bytes; zeros unless it is `on`."""
  takes = on.astype(jnp.float32)
  dense = jnp.float32(dense_size(update, aux))
  return {
    **sent('bytes_up', value, on),
    'ratio': Mean(takes * dense, takes * value.astype(jnp.float32)),
  }


def check_floats(name: str, ctx: Context) -> Shapes:
  """Returns the shapes of the leaves that a layer receives, all of them floats.

  Raises:
    IncompatibleStages: a leaf is not an array of floats, or there is none.
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

  def __call__(self, ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    """Returns (message, state, metrics), as every side of a layer."""
    codec, draws = self.codec, Keys(ctx.key, ctx.round_key)
    shapes = tuple(x.shape for x in jax.tree.leaves(message.update))
    on = message.weight > 0  # others encode zeros: to zero what is decoded is one more pass
    message = message._replace(update=tree.keep(on, message.update))
    if codec.estimate and not _tap.listening():
      update, value = self._estimated(draws, message, shapes)
    else:
      x = tree.ravel(message.update)
      code = codec.encode(draws, x, shapes)
      _tap.take(codec, code)
      values = code.rest if codec.adds else codec.decode(draws, code, shapes)
      values = jnp.where(tree.finite(x), values, jnp.float32(jnp.nan))
      update = values if codec.adds else tree.unravel(values, message.update)
      value = nbytes(parts_of(code), message.aux)
    metrics = reported(message.update, message.aux, value, on)
    return message._replace(update=update), state, metrics

  def _estimated(self, draws: Keys, message: Message, shapes: Shapes) -> tuple[Tree, jax.Array]:
    """Returns (the decoded update, bytes of the message) by the codec's `estimate`."""
    codec = self.codec
    leaves, structure = jax.tree.flatten(message.update)
    vectors = [x.astype(jnp.float32).reshape(-1) for x in leaves]
    values, indices = codec.estimate(draws, vectors, shapes)  # type: ignore[misc]
    decoded = [v.reshape(x.shape).astype(x.dtype) for v, x in zip(values, leaves, strict=True)]
    # The other bytes depend on shapes only.
    whole = jax.ShapeDtypeStruct((size(shapes),), jnp.float32)
    like = jax.eval_shape(lambda x: codec.encode(draws, x, shapes), whole)
    total = indices + fixed_size(parts_of(like), message.aux)
    return jax.tree.unflatten(structure, decoded), total

  def init(self, ctx: Context) -> Tree:
    """Returns the state of a client, which is empty.

    Raises:
      ValueError: the codec cannot encode what the layer receives.
    """
    self.codec.check(check_floats(self.codec.name, ctx))
    return ()


def layer_of(codec: Codec) -> Layer:
  """Returns the layer of a codec, such as this new one, which sends the first value only.

  >>> encode = lambda draws, x, shapes: Code((), x[:1])
  >>> decode = lambda draws, code, shapes: jnp.pad(code.rest, (0, size(shapes) - 1))
  >>> first = Codec('first', encode, decode, left=lambda shapes: ((1,),))
  >>> fm.apply([[3.0, 4.0]], layer_of(first)).update.tolist()
  [3.0, 0.0]

  If codes add, the layer has a server side, which decodes their sum.
  """

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
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

  >>> codec = codec_of(codec=fm.stages.compress.top_k(k=2))
  >>> codec.name, codec.adds, codec.error(((8,),))
  ('top_k', False, 0.75)

  Raises:
    ValueError: any other layer, or one under error feedback or with a state.
  """
  ((name, layer),) = named.items()
  fact = layer.fact(Encodes) if isinstance(layer, Layer) else None
  if fact is None or not isinstance(fact.codec, Codec):
    raise ValueError(
      f'{name} must be a codec such as top_k or quantize, without error feedback or a state, '
      f'got {layer.name if isinstance(layer, Layer) else layer!r}.'
    )
  return fact.codec
