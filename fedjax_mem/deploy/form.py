"""The forms of what crosses: parameters down, and a client's message up, as the codecs' bytes.

Both sides plan the same round, so that shapes are never sent. A message crosses in one of these:

    code       the parts of the codec that is the client's last side, decoded on the server
    integers   each value modulo 2 ** b, in b bits
    dense      the arrays of the update in their own dtypes; also codes that add, which are values
    masked     not here: under masks nothing crosses but what `secure.py` says

Under a claim of privacy, and under masks, a client sends nothing beside its message: no loss, no
number of examples, and not whether its update was finite.
"""

import functools
import math
import struct
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem import engine
from fedjax_mem.core import (
  Encodes,
  IncompatibleStages,
  Integers,
  Masks,
  Message,
  Noises,
  Tree,
  keys,
  scalar_member,
  tree,
  wire,
)
from fedjax_mem.engine import Made, Setting, Told
from fedjax_mem.stages import compress

_HEAD = struct.Struct('<?IQ')  # whether the message is finite, examples, bytes of the message
_TOLD = struct.Struct('<iif')  # round, the round whose states the client goes on from, chance
NEVER = -1  # the client has no states yet


class Asked(NamedTuple):
  """What a client is asked to train with.

  Attributes:
    told: parameters and server states.
    last: round after which the client's states are those that count; `NEVER`: none.
    chance: probability with which the client was drawn, for samplers that weigh by it.
  """

  told: Told
  last: int
  chance: float


class Answer(NamedTuple):
  """What a client has sent, decoded; arrays of NumPy.

  Attributes:
    message: as it enters cohort sides or the sum.
    fine: whether all of it is finite, and was on the client.
    examples: of the client; 0 where it does not say.
    metrics: of its sides; empty where they do not cross.
  """

  message: Message
  fine: bool
  examples: int
  metrics: dict[str, Any]


class Form:
  """How the messages of a round are written; the server and all clients have the same.

  Attributes:
    setting: of the run.
    quiet: whether clients send nothing beside their messages.
    kind: 'code', 'integers' or 'dense'.
    bytes_down: bytes of what a client is asked.
    bytes_up: most bytes of what a client answers; those of indices depend on their values.
  """

  def __init__(self, setting: Setting, params: Tree, arrays: dict[str, Any], servers: Tree):
    """Plans the bytes, on shapes alone.

    Args:
      setting: of the run.
      params: the parameters, or their shapes.
      arrays: some client's examples, name -> [n, ...], or their shapes.
      servers: server states, layer -> state, or their shapes.

    Raises:
      IncompatibleStages: a layer that does not work between processes.
    """
    self.setting = setting
    group = engine.client_layers(setting.layers)
    self.quiet = setting.layers.claims or bool(setting.layers.having(Masks))
    params, arrays, servers = (tree.shapes(x) for x in (params, arrays, servers))
    seed, root = jax.ShapeDtypeStruct((), jnp.uint32), jax.ShapeDtypeStruct((2,), jnp.uint32)
    rows = jax.eval_shape(
      lambda p, s, r: engine.first_rows(setting, p, jnp.int32(0), s, r), params, seed, root
    )
    mine = {x.name: servers[x.name] for x in group}
    told = Told(jax.ShapeDtypeStruct((), jnp.int32), params, mine)
    count = jax.ShapeDtypeStruct((), jnp.int32)
    asked = (told, arrays, count, scalar_shapes(), rows, seed, root)
    self._told = told._replace(servers=_read(setting, asked))
    codecs: list[Any] = []
    self._made, self._codes = jax.eval_shape(
      functools.partial(work, setting, codecs=codecs), self._told, *asked[1:]
    )
    self.kind, self._layer, self._codec = _kind(setting, group, codecs), group[-1], codecs[-1:]
    self.bytes_down = _TOLD.size + tree.nbytes(self._told[1:])
    self._specs = [wire.spec(x) for x in self._parts(self._made.message, self._codes[-1:])]
    beside = 0 if self.quiet else tree.nbytes(self._made.metrics)
    self.bytes_up = _HEAD.size + beside + _most(self._parts(self._made.message, self._codes[-1:]))

  @property
  def servers(self) -> dict[str, Tree]:
    """Shapes of the server states that clients are told, layer -> state."""
    return self._told.servers

  def ask(self, asked: Asked) -> bytes:
    """Returns the bytes of what a client is asked, at the server."""
    told = asked.told
    servers = {name: told.servers[name] for name in self._told.servers}
    head = _TOLD.pack(int(told.round), asked.last, asked.chance)
    return head + _packed((told.params, servers))

  def asked(self, body: bytes) -> Asked:
    """Returns what a client is asked, from its bytes, at the client.

    Raises:
      ValueError: bytes of another length.
    """
    if len(body) != self.bytes_down:
      raise ValueError(f'a task must have {self.bytes_down} bytes, got {len(body)}.')
    round, last, chance = _TOLD.unpack_from(body)
    params, servers = _unpacked(body[_TOLD.size :], self._told[1:])
    return Asked(Told(np.int32(round), params, servers), last, chance)

  def answer(self, made: Made, codes: tuple[Any, ...], examples: int) -> bytes:
    """Returns the bytes of what a client has made, at the client.

    Args:
      made: on the host.
      codes: of the codecs among its sides.
      examples: of the client.
    """
    parts = self._parts(made.message, codes[-1:])
    packet = wire.encode(float(made.message.weight), parts)
    if self.quiet:
      return _HEAD.pack(True, 0, len(packet)) + packet
    return _HEAD.pack(bool(made.fine), examples, len(packet)) + packet + _packed(made.metrics)

  def read(self, body: bytes, seed: int, round: int, client: int) -> Answer:
    """Returns what a client has sent, decoded, at the server.

    Args:
      body: the bytes.
      seed: the run's seed.
      round: from 0.
      client: its id.

    Raises:
      ValueError: bytes that no client of this round sends.
    """
    if len(body) < _HEAD.size:
      raise ValueError('an answer must have its header')
    fine, examples, length = _HEAD.unpack_from(body)
    end = _HEAD.size + length
    beside = 0 if self.quiet else tree.nbytes(self._made.metrics)
    if end + beside != len(body) or (self.quiet and (examples or not fine)):
      raise ValueError('an answer must have the bytes that its header says')
    most = (2**31 - 1) // self.setting.capacity  # the sum over the cohort is an int32
    if examples > most:
      raise ValueError(f'examples must be at most {most}, got {examples}')
    packet = wire.decode(body[_HEAD.size : end], self._specs)
    self._check_weight(packet.weight)
    message = self._message(packet, np.uint32(seed), np.int32(round), np.int32(client))
    metrics = {} if self.quiet else _unpacked(body[end:], self._made.metrics)
    sound = all(np.isfinite(x).all() for x in jax.tree.leaves(message))
    return Answer(message, fine and sound, examples, metrics)

  def empty(self) -> tuple[Message, dict[str, Any]]:
    """Returns zeros in place of a message and its metrics, for a client that has not answered."""
    zeros = lambda like: jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
    return zeros(self._made.message), {} if self.quiet else zeros(self._made.metrics)

  def _check_weight(self, weight: float) -> None:
    """Raises `ValueError` for a weight that no client of this round has."""
    alike = self.setting.layers.weighs.alike
    if not 0 <= weight < math.inf or (alike and weight not in (0.0, 1.0)):
      raise ValueError(f'a weight must be {"1" if alike else "a number >= 0"}, got {weight!r}')

  def _parts(self, message: Message, codes: tuple[Any, ...]) -> list[wire.Part]:
    """Returns the parts of a message (arrays, or shapes)."""
    leaves = jax.tree.leaves(message.update)
    if self.kind == 'code':
      parts = compress.parts_of(codes[-1])
    elif self.kind == 'integers':
      fact = self._layer.fact(Integers)
      bits = 32 if fact is None else fact.bits
      parts = [wire.Levels(_flat(leaves, lambda x: x.astype(np.int64) % 2**bits, np.int64), bits)]
    else:
      size = tree.nbytes(leaves)
      shapes = any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves)
      raw = np.zeros(size, np.uint8) if shapes else np.frombuffer(_packed(leaves), np.uint8)
      parts = [wire.Raw(raw)]
    aux = jax.tree.leaves(message.aux)
    more = [wire.Floats(_flat(aux, lambda x: x.astype(np.float32), np.float32))] if aux else []
    return [*parts, *more]

  def _message(self, packet: wire.Packet, seed: Any, round: Any, client: Any) -> Message:
    """Returns the message of a packet, with arrays of NumPy."""
    like = self._made.message
    parts = list(packet.parts)
    aux = like.aux
    if jax.tree.leaves(aux):
      aux = _cut(parts.pop().values, aux)
    if self.kind == 'code':
      update = jax.device_get(self._decode(seed, round, client, self._code(parts)))
    elif self.kind == 'integers':
      bits = parts[0].bits  # type: ignore[union-attr]
      whole = parts[0].values.astype(np.int64)
      update = _cut(np.where(whole >= 2 ** (bits - 1), whole - 2**bits, whole), like.update)
    else:
      update = _unpacked(parts[0].values.tobytes(), like.update)
    weight: Any = np.asarray(packet.weight, like.weight.dtype)
    return Message(update, weight, aux)

  def _code(self, parts: list[wire.Part]) -> Any:
    """Returns the code whose parts these are."""
    leaves, structure = jax.tree.flatten(self._codes[-1])
    values = [part.values for part in parts]
    values += [np.zeros(0, np.float32)] * (len(leaves) - len(values))  # an empty rest is not sent
    cast = [np.asarray(v, x.dtype).reshape(x.shape) for v, x in zip(values, leaves, strict=True)]
    return jax.tree.unflatten(structure, cast)

  @functools.cached_property
  def _decode(self) -> Any:
    """The compiled decoder, (seed, round, client, code) -> update."""
    setting, like = self.setting, self._made.message.update
    shapes = tuple(x.shape for x in jax.tree.leaves(like))

    def decoded(seed: jax.Array, round: jax.Array, client: jax.Array, code: Any) -> Tree:
      cast = engine.broadcast(seed, round, (), root=keys.open_root(seed))
      member = scalar_member(client)
      ctx = engine.context(setting.layers, self._layer, 'client', cast, setting.specs, member)
      draws = compress.Keys(ctx.key, ctx.round_key)
      return compress.unflat(self._codec[0].decode(draws, code, shapes), like)

    return jax.jit(decoded)


def scalar_shapes() -> Any:
  """Returns the shapes of one client's `Member`."""
  return jax.eval_shape(scalar_member, jax.ShapeDtypeStruct((), jnp.int32))


def work(
  setting: Setting,
  told: Told,
  arrays: dict[str, jax.Array],
  count: jax.Array,
  client: Any,
  rows: dict[str, Tree],
  seed: jax.Array,
  root: jax.Array,
  codecs: list[Any] | None = None,
) -> tuple[Made, tuple[Any, ...]]:
  """Returns (what one client makes, the codes of its codecs); to be compiled.

  The arguments are those of `engine.one_client`; `codecs` receives the codecs, while it is traced.
  """
  with compress.tapped() as taken:
    made = engine.one_client(setting, told, arrays, count, client, rows, seed, root)
  if codecs is not None:
    codecs += [x.codec for x in taken]
  return made, tuple(x.code for x in taken)


def _kind(setting: Setting, group: Any, codecs: list[Any]) -> str:
  """Returns how messages are written.

  Raises:
    IncompatibleStages: a layer whose codes cannot be written by themselves.
  """
  for x, side, fact in setting.layers.having(Encodes):
    apart = side == 'client' and (fact.codec.adds or x is group[-1]) and codecs
    if not apart:
      raise IncompatibleStages(
        f'{x.name!r} has a code that cannot cross by itself (it depends on states of both sides, '
        'or on other clients): simulate it, or choose another codec.'
      )
  last = group[-1]
  if last.fact(Integers) is not None:
    return 'integers'
  coded = last.fact(Encodes)
  return 'code' if coded is not None and not coded.codec.adds else 'dense'


def _read(setting: Setting, asked: tuple[Any, ...]) -> dict[str, Tree]:
  """Returns the server states that the clients' sides read, layer -> shapes: others stay at home.

  Raises:
    IncompatibleStages: one of them holds noise that protects later rounds.
  """
  made = jax.make_jaxpr(functools.partial(engine.one_client, setting))(*asked).jaxpr
  used = {id(x) for eqn in made.eqns for x in eqn.invars} | {id(x) for x in made.outvars}
  told: Told = asked[0]
  places = iter(made.invars[1 + len(jax.tree.leaves(told.params)) :])
  read = {}
  for name in sorted(told.servers):  # the order of the leaves of a dict
    leaves = jax.tree.leaves(told.servers[name])
    if any([id(next(places)) in used for _ in leaves]):
      read[name] = told.servers[name]
  secret = [x.name for x, _, noise in setting.layers.having(Noises) if noise.mechanism.correlated]
  for name in set(secret) & set(read):
    raise IncompatibleStages(
      f'{name!r} has a client side that reads the noise of its server state, which no client may '
      'know: simulate it, or keep the two apart.'
    )
  return read


def _most(parts: list[wire.Part]) -> int:
  """Returns the most bytes of a message of such parts."""
  indices = [wire.bitmap_size(x.size) for x in parts if isinstance(x, wire.Indices)]
  return wire.OVERHEAD + sum(map(wire.fixed_size, parts)) + sum(indices)


def _flat(leaves: list[Any], make: Any, dtype: Any) -> Any:
  """Returns the values of arrays, made and flat; of shapes, zeros of as many."""
  if any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
    return np.zeros(tree.size(leaves), dtype)
  return np.concatenate([make(np.asarray(x)).reshape(-1) for x in leaves])


def _packed(values: Tree) -> bytes:
  """Returns the bytes of all arrays, leaf after leaf, in their own dtypes, little-endian."""
  return b''.join(np.ascontiguousarray(x).tobytes() for x in jax.tree.leaves(values))


def _unpacked(data: bytes, like: Tree) -> Any:
  """Returns the arrays whose bytes `_packed` gave."""
  leaves, structure = jax.tree.flatten(like)
  made, start = [], 0
  for x in leaves:
    count = math.prod(x.shape)
    made.append(np.frombuffer(data, x.dtype, count, start).reshape(x.shape))
    start += count * x.dtype.itemsize
  return jax.tree.unflatten(structure, made)


def _cut(values: np.ndarray, like: Tree) -> Any:
  """Returns flat values as a tree of the shapes and dtypes of `like`."""
  leaves, structure = jax.tree.flatten(like)
  ends = np.cumsum([math.prod(x.shape) for x in leaves])[:-1]
  parts = np.split(values, ends)
  made = [v.reshape(x.shape).astype(x.dtype) for v, x in zip(parts, leaves, strict=True)]
  return jax.tree.unflatten(structure, made)
