"""Secure aggregation inside the compiled round: pairwise masks that cancel in the sum.

This is a simulation of the numerics and gives no protection: the masks come from JAX's generator,
which is not cryptographic, and from a key that all clients and the server have. Protection comes
from `fedjax_mem.secagg.protocol`. Both use integers modulo 2 ** b, one mask for each pair of
neighbours in a random regular graph of the cohort, drop-outs after the masks were added, and the
removal of the masks that drop-outs leave in the sum.

Every leaf of the message is masked. The update must be integers already (`integers`, or
`distributed` noise). The weight and aux become integers of 32 bits here, on a public scale.

Clients form a ring, in a new random order in every round. For each pair at distance
j = 1 … degree / 2, the first client adds the pair's mask and the second subtracts it. In the sum
modulo 2 ** b, the masks of two clients that arrived cancel bit for bit. If only one of a pair
arrived, the server side recomputes the mask and removes it; in the protocol, survivors reveal the
seeds that they shared with clients that dropped out. Self-masks (Bonawitz et al. 2017, section 4.2)
are omitted: for a client that arrived the server always removes them.

In a cohort of at most `degree` clients some pairs coincide; the sum is the same. The protocol
refuses cohorts that are too small to protect a client.

Reference: Bonawitz et al. (2017), Practical secure aggregation, section 4; Bell et al. (2020),
ePrint 2020/704, section 3 (regular graphs).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  Bounds,
  Context,
  IncompatibleStages,
  Integers,
  Layer,
  Masks,
  Member,
  Message,
  Metrics,
  Stage,
  Total,
  Tree,
  tree,
  validate,
)
from fedjax_mem.kernels.codes import modular

# Numbers folded into the round's key: of the order of the ring, and of the pairs' masks.
_RING, _PAIRS = 0, 1
_HEADROOM = 30  # bits of the largest sum of weights: one less than an int32 has beside its sign


_Side = Callable[[Context, Message, Tree], tuple[Message, Tree, Metrics]]


class _Code(NamedTuple):
  """How a whole message becomes integers, and their sum a message again.

  Attributes:
    bits: of the modulus of the update's integers.
    step: of the grid of weight and aux, whose integers have 32 bits.
  """

  bits: int
  step: float

  def encoded(self, message: Message, largest: float) -> tuple[Message, Metrics]:
    """Returns (integers without masks, metrics); zeros if weight or aux is beyond `largest`."""
    fits = jnp.bool_(True)
    for x in (message.weight, *jax.tree.leaves(message.aux)):
      fits &= jnp.all(jnp.abs(x.astype(jnp.float32)) <= jnp.float32(largest))
    kept = tree.keep(fits, message)
    whole = Message(kept.update, self._encode(kept.weight), jax.tree.map(self._encode, kept.aux))
    return whole, {'left_out': Total((~fits).astype(jnp.int32))}

  def decoded(self, total: Message, like: Message) -> Message:
    """Returns the sum of messages, with the dtypes of `like`, from the sum of their integers."""
    return Message(
      jax.tree.map(lambda x: modular.centered(x, self.bits), total.update),
      self._decode(total.weight, like.weight),
      jax.tree.map(self._decode, total.aux, like.aux),
    )

  def _encode(self, x: jax.Array) -> jax.Array:
    return jnp.round(x.astype(jnp.float32) * jnp.float32(1 / self.step)).astype(jnp.int32)

  def _decode(self, x: jax.Array, like: jax.Array) -> jax.Array:
    scaled: jax.Array = x.astype(jnp.float32) * jnp.float32(self.step)
    return scaled.astype(like.dtype)


class _Ring(NamedTuple):
  """The cohort in the order of a round's ring.

  Attributes:
    ids: [C] int32; padding is last.
    arrived: [C] bool.
    size: int32, clients in the ring.
  """

  ids: jax.Array
  arrived: jax.Array
  size: jax.Array


def _ring(ctx: Context) -> _Ring:
  """Returns the ring of the round, the same for all clients and in every execution mode."""
  cohort: Member = ctx.cohort
  parent = jax.random.fold_in(ctx.round_key, _RING)

  def draw(id: jax.Array) -> jax.Array:
    return jax.random.bits(jax.random.fold_in(parent, id), (), jnp.uint32) >> 1

  # Clients draw numbers below 2 ** 31, so padding is last.
  place = jnp.where(cohort.real, jax.vmap(draw)(cohort.id), jnp.uint32(2**32 - 1))
  order = jnp.argsort(place)
  count = jnp.maximum(cohort.real.sum(dtype=jnp.int32), 1)
  return _Ring(cohort.id[order], cohort.arrived[order], count)


def _mask(ctx: Context, first: jax.Array, distance: jax.Array, like: Tree) -> Tree:
  """Returns the mask of the pair of client `first` and the client `distance` places after it.

  Args:
    ctx: context of any side of the layer.
    first: int32, id of the client.
    distance: int32, 1 to degree / 2.
    like: tree of int32 arrays, whose shapes the mask has.
  """
  key = jax.random.fold_in(jax.random.fold_in(ctx.round_key, _PAIRS), first)
  leaves, structure = jax.tree.flatten(like)
  keys = jax.random.split(jax.random.fold_in(key, distance), len(leaves))
  drawn = [modular.uniform(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(structure, drawn)


def _own(ctx: Context, like: Tree, reach: int) -> Tree:
  """Returns the sum of the masks that one client adds or subtracts, pair after pair."""
  ring = _ring(ctx)
  place = jnp.argmax(ring.ids == ctx.client.id).astype(jnp.int32)

  # A scan: a vmap over pairs inside the clients' vmap would hold [C, degree, D].
  def pair(total: Tree, distance: jax.Array) -> tuple[Tree, None]:
    before = ring.ids[(place - distance) % ring.size]
    ahead = _mask(ctx, ctx.client.id, distance, like)
    return tree.sub(tree.add(total, ahead), _mask(ctx, before, distance, like)), None

  return jax.lax.scan(pair, tree.zeros(like), jnp.arange(1, reach + 1, dtype=jnp.int32))[0]


def _left_behind(ctx: Context, like: Tree, reach: int) -> Tree:
  """Returns what remains in the sum of the masks of pairs of which only one client arrived."""
  ring = _ring(ctx)
  rows = ring.ids.size

  def pair(total: Tree, number: jax.Array) -> tuple[Tree, None]:
    place, distance = number // reach, number % reach + 1
    other = (place + distance) % ring.size
    # +1 if only the first arrived, who added the mask; -1 if only the second; 0 for both or none.
    sign = ring.arrived[place].astype(jnp.int32) - ring.arrived[other].astype(jnp.int32)
    sign = jnp.where(place < ring.size, sign, 0)
    more = lambda: tree.add(total, tree.scale(sign, _mask(ctx, ring.ids[place], distance, like)))
    return jax.lax.cond(sign != 0, more, lambda: total), None

  return jax.lax.scan(pair, tree.zeros(like), jnp.arange(rows * reach, dtype=jnp.int32))[0]


def mask(*, clients: int, bits: int = 32, degree: int = 8, weight_range: float = 4096.0) -> Layer:
  """Returns the layer that masks messages, and removes from the sum the masks of drop-outs.

  Place it last. A message takes no part if its weight or a value of its aux is beyond
  `weight_range`; the metric `left_out` counts such messages. The metric `recovered` counts the
  clients that dropped out, whose masks were removed.

  >>> layers = fm.stages.masks.integers(8.0, clients=2), mask(clients=2)
  >>> fm.apply([[6.0, 8.0], [3.0, 4.0]], layers).update.round(3).tolist()
  [4.5, 6.0]

  Args:
    clients: the most clients of a round, for the scale of weights; an experiment fills it in.
    bits: b, bits of the update's integers, the same as in the layer that makes them.
    degree: number of pairs that a client is in, even, >= 2. Each client draws `degree` masks of the
      size of a whole message; the released sum does not depend on it.
    weight_range: largest weight and largest value of aux, public, > 0. Both are rounded to a grid
      whose step is at most 2 * clients * weight_range * 2 ** -30; whole numbers stay exact as long
      as the step is at most 1.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(at_most=2**20, clients=clients)
  validate.integer(at_least=2, at_most=modular.LARGEST, bits=bits)
  validate.integer(at_least=2, degree=degree)
  if degree % 2:
    raise ValueError(f'degree must be even, got {degree!r}.')
  validate.positive(weight_range=weight_range)
  code = _Code(bits, 2.0 ** (math.ceil(math.log2(weight_range) + math.log2(clients)) - _HEADROOM))
  reach = degree // 2

  def plain(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    whole, metrics = code.encoded(message, weight_range)
    return whole, state, metrics

  def client(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    whole, metrics = code.encoded(message, weight_range)
    total = tree.add(whole, _own(ctx, whole, reach))
    update = jax.tree.map(lambda x: modular.wrapped(x, bits), total.update)
    return total._replace(update=update), state, metrics

  def decode(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    gone = (ctx.cohort.real & ~ctx.cohort.arrived).sum(dtype=jnp.int32)
    return code.decoded(message, ctx.spec), state, {'recovered': gone}

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    return decode(ctx, tree.sub(message, _left_behind(ctx, message, reach)), state)

  bare = _layer(plain, decode, Integers(bits, clients), Masks(bits))
  return _layer(client, server, Integers(bits, clients), Masks(bits, bare))


def _layer(client: _Side, server: _Side, whole: Integers, masks: Masks) -> Layer:
  """Returns the layer of two sides, with what holds whoever adds the masks and removes them."""
  # Masks are removed exactly, so the bound of the sum is unchanged.
  kept = Bounds(lambda ctx, bound: bound)
  init = lambda ctx: _check_update(ctx.spec)
  client_side = Stage(client, init, (kept, whole, masks))
  return Layer('mask', client=client_side, server=Stage(server, facts=(kept,)))


def _check_update(like: Message) -> tuple[()]:
  """Returns the state of a client, which is empty.

  Raises:
    IncompatibleStages: the update is not int32, or aux is not floats.
  """
  other = [x.dtype for x in jax.tree.leaves(like.update) if x.dtype != jnp.int32]
  if other:
    raise IncompatibleStages(
      f"'mask' covers int32, and what reaches it holds {other[0]}: masks on floats do not cancel; "
      'put integers, or distributed noise, right before it.'
    )
  whole = tree.not_floats(like.aux)
  if whole:
    raise IncompatibleStages(
      f"'mask' encodes aux from floats, and what reaches it holds {whole[0]}: send such sums as "
      'floats.'
    )
  return ()
