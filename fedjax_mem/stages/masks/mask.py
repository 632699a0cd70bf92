"""Secure aggregation inside the compiled round: pairwise masks that cancel in the sum.

This is a simulation of the numerics: the masks come from JAX's generator, which is not
cryptographic, out of a key that everyone in the round has. It hides nothing from anybody; what
hides is `fedjax_mem.secagg.protocol`. What is the same as there: integers modulo 2 ** b, a
mask for each pair of neighbours in a random regular graph of the cohort, drop-outs after the
masks were added, and the recovery of what they leave behind.

Every leaf of the message is masked. The update has to be integers already (`integers`, or
`distributed` noise); the weight and aux become integers of 32 bits here, on a public scale.

Clients stand in a ring, in a random order of their own for every round. The mask of a pair at
distance j = 1 … degree / 2 is added by the first of the two and subtracted by the second. Summed
modulo 2 ** b the masks of all that arrive cancel bit for bit; where only one of a pair has arrived,
the server side computes the mask anew and removes it, as survivors of the protocol reveal the seeds
they shared with those who left. Masks that a client adds for itself alone (Bonawitz et al. 2017,
section 4.2) are left out: for a client that arrived the server always removes them.

In a cohort of one or of no more than `degree` clients some pairs coincide; the sum is the same. The
protocol refuses cohorts that are too small to hide anybody.

Reference: Bonawitz et al. (2017), Practical secure aggregation, section 4; Bell et al. (2020),
arXiv 2003.07505 (ePrint 2020/704), section 3 (regular graphs).
"""

import math
from typing import Any, NamedTuple

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
  Stage,
  Total,
  tree,
  validate,
)
from fedjax_mem.kernels.codes import modular

Tree = Any
_RING, _PAIRS = 0, 1
_HEADROOM = 30  # bits of the sum of weights at their limit, of 31


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
  """Returns the ring of the round, the same for everyone and in every execution."""
  cohort: Member = ctx.cohort
  parent = jax.random.fold_in(ctx.round_key, _RING)
  draw = lambda id: jax.random.bits(jax.random.fold_in(parent, id), (), jnp.uint32) >> 1
  place = jnp.where(cohort.real, jax.vmap(draw)(cohort.id), jnp.uint32(2**32 - 1))
  order = jnp.argsort(place)
  count = jnp.maximum(cohort.real.sum(dtype=jnp.int32), 1)
  return _Ring(cohort.id[order], cohort.arrived[order], count)


def _mask(ctx: Context, first: jax.Array, distance: jax.Array, like: Tree) -> Tree:
  """Returns the mask of the pair of the client `first` and the one at a distance from it."""
  key = jax.random.fold_in(jax.random.fold_in(ctx.round_key, _PAIRS), first)
  leaves, structure = jax.tree.flatten(like)
  keys = jax.random.split(jax.random.fold_in(key, distance), len(leaves))
  drawn = [modular.uniform(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(structure, drawn)


def _own(ctx: Context, like: Tree, reach: int) -> Tree:
  """Returns the sum of the masks that one client adds, pair after pair."""
  ring = _ring(ctx)
  place = jnp.argmax(ring.ids == ctx.client.id).astype(jnp.int32)

  # A vmap over pairs inside the clients' vmap would hold [C, degree, D].
  def pair(total: Tree, distance: jax.Array) -> tuple[Tree, None]:
    before = ring.ids[(place - distance) % ring.size]
    ahead = _mask(ctx, ctx.client.id, distance, like)
    return tree.sub(tree.add(total, ahead), _mask(ctx, before, distance, like)), None

  return jax.lax.scan(pair, tree.zeros(like), jnp.arange(1, reach + 1, dtype=jnp.int32))[0]


def _left_behind(ctx: Context, like: Tree, reach: int) -> Tree:
  """Returns the sum of the masks of pairs of which only one client arrived, as it was summed."""
  ring = _ring(ctx)
  rows = ring.ids.size

  def pair(total: Tree, number: jax.Array) -> tuple[Tree, None]:
    place, distance = number // reach, number % reach + 1
    other = (place + distance) % ring.size
    sign = ring.arrived[place].astype(jnp.int32) - ring.arrived[other].astype(jnp.int32)
    sign = jnp.where(place < ring.size, sign, 0)
    more = lambda: tree.add(total, tree.scale(sign, _mask(ctx, ring.ids[place], distance, like)))
    return jax.lax.cond(sign != 0, more, lambda: total), None

  return jax.lax.scan(pair, tree.zeros(like), jnp.arange(rows * reach, dtype=jnp.int32))[0]


def mask(*, clients: int, bits: int = 32, degree: int = 8, weight_range: float = 4096.0) -> Layer:
  """Returns the layer that masks messages, and takes off the sum what drop-outs left on it.

  Place it last. A message whose weight, or a value of whose aux, is beyond `weight_range` takes no
  part, and is counted as `outside`. `recovered` counts the clients that left pairs behind.

  Args:
    clients: the most clients of a round, for the scale of weights; an experiment fills it in.
    bits: b of the integers of the update, as the layer says that makes them.
    degree: pairs that a client is in, even. It costs `degree` draws of a whole message for each
      client; what is released does not depend on it.
    weight_range: the largest weight and value of aux, public. Both are rounded to
      2 * clients * weight_range * 2 ** -30 or less, and to whole numbers not at all while that is
      at most 1.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(at_most=2**20, clients=clients)
  validate.integer(at_least=2, at_most=modular.LARGEST, bits=bits)
  validate.integer(at_least=2, degree=degree)
  if degree % 2:
    raise ValueError(f'degree must be even, got {degree!r}.')
  validate.positive(weight_range=weight_range)
  step = 2.0 ** (math.ceil(math.log2(weight_range) + math.log2(clients)) - _HEADROOM)
  reach = degree // 2
  encode = lambda x: jnp.round(x.astype(jnp.float32) * jnp.float32(1 / step)).astype(jnp.int32)
  small = lambda x: jnp.all(jnp.abs(x.astype(jnp.float32)) <= jnp.float32(weight_range))

  def init(ctx: Context):
    _check_update(ctx.spec)
    return ()

  def client(ctx: Context, message: Message, state):
    fits = jnp.bool_(True)
    for x in (message.weight, *jax.tree.leaves(message.aux)):
      fits &= small(x)
    kept = tree.keep(fits, message)
    plain = Message(kept.update, encode(kept.weight), jax.tree.map(encode, kept.aux))
    total = tree.add(plain, _own(ctx, plain, reach))
    update = jax.tree.map(lambda x: modular.wrapped(x, bits), total.update)
    return total._replace(update=update), state, {'outside': Total((~fits).astype(jnp.int32))}

  def server(ctx: Context, message: Message, state):
    plain = tree.sub(message, _left_behind(ctx, message, reach))
    decode = lambda x, like: (x.astype(jnp.float32) * jnp.float32(step)).astype(like.dtype)
    back = Message(
      jax.tree.map(lambda x: modular.centered(x, bits), plain.update),
      *(jax.tree.map(decode, x, like) for x, like in zip(plain[1:], ctx.spec[1:], strict=True)),
    )
    gone = (ctx.cohort.real & ~ctx.cohort.arrived).sum(dtype=jnp.int32)
    return back, state, {'recovered': gone}

  # The sum is as it was: masks come off exactly.
  kept = Bounds(lambda ctx, bound: bound)
  client_side = Stage(client, init, (kept, Integers(bits, clients), Masks(bits)))
  return Layer('mask', client=client_side, server=Stage(server, facts=(kept,)))


def _check_update(like: Message) -> None:
  """Raises `IncompatibleStages` unless the update is of int32, and aux of floats."""
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
