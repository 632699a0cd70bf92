"""Distributed differential privacy: each client adds a share of the noise, in integers, for a mask.

A client clips its update in L2, rotates it (so that no value is large), scales it to a grid, rounds
it at random until it is within a stated bound, and adds integer noise. A mask must follow, so that
the server sees only the sum modulo 2 ** b. The noise of a single message is small and protects
little; only the sum has enough noise. A round without a mask is refused.

Formal guarantee: one client moves the integer sum by at most `l2` in L2, where
l2² = min(L² + d / 4 + sqrt(2 log(1 / beta)) (L + sqrt(d) / 2), (L + sqrt(d))²)
for L steps of the grid in the clip norm and d values after the rotation. Conditional rounding keeps
this bound with certainty, checked in exact integers. The sum holds the noise of all clients that
arrived, at least `shares` of them. If fewer arrive, nothing is released, `withheld` is 1, and the
round changes neither parameters nor any state; it is accounted nevertheless, an upper bound. Each
share has the variance (noise_multiplier l2)² / shares, so the noise of `shares` clients is
accounted; additional noise is post-processing. Neither wrap-around nor anything else after the sum
costs privacy. Sampling gives no amplification.

The guarantee covers what a client sends, not whether it arrives. A client that leaves takes its
noise with it, so 'add_or_remove_one' is not covered, and drop-out must not depend on data. A client
whose update is not finite counts as dropped; that it was not finite is not covered either. If an
observer of the sum knows the noise of k clients, only shares - k shares protect the others. Weights
are not sent: their sum would be released without noise. A withheld sum stays hidden only if the
protocol also needs `shares` clients to unmask a sum (its threshold).

Noise is Skellam, whose sums are Skellam, or discrete Gaussian, whose sums are nearly discrete
Gaussian.

The modulus: a coordinate of the sum, in steps of the grid, is sub-Gaussian with
s² = (n L)² / B + n / 4 + the variance of n shares, for n clients that all send the same update at
the clip norm, and rotation in blocks of B. The grid is the finest for which 4 s has room.

Reference: Kairouz, Liu, Steinke (2021), arXiv 2102.06387, Algorithms 1 and 2 (clip, rotate, round
conditionally, sum modulo), sums of discrete Gaussians; Agarwal, Kairouz, Liu (2021), arXiv
2110.04995 (Skellam). The bounds that are accounted are stated in `fedjax_mem.mechanisms`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem import mechanisms
from fedjax_mem.core import (
  Bound,
  Bounds,
  Context,
  IncompatibleStages,
  Integers,
  Layer,
  Mechanism,
  Message,
  Metrics,
  Noises,
  Stage,
  Tree,
  Withholds,
  tree,
  validate,
)
from fedjax_mem.kernels.codes import hadamard, modular, rotate
from fedjax_mem.stages.privacy import _base as kit

SPREADS = 4  # standard deviations of a coordinate of the sum that the modulus has room for
FINEST = 2**14  # most levels: squared norms on the grid are then exact in int32
_LARGEST = 2**29  # most values of an update, for the same reason
_TRIES = 32  # most roundings drawn; then the update is rounded towards zero
# Values rotated together, if the padding allows: the more, the smaller the largest value.
BLOCK = 4096

_Side = Callable[[Context, Message, Tree], tuple[Message, Tree, Metrics]]


class NoRoom(ValueError):
  """The bits are too few for the noise and the sum of all clients."""


class Grid(NamedTuple):
  """A public grid and its bounds, in steps of the grid.

  Attributes:
    levels: L, steps in the clip norm.
    squared: bound on the squared L2 norm of a rounded update, a whole number.
    spread: s, the sub-Gaussian parameter of a coordinate of the sum.
  """

  levels: int
  squared: int
  spread: float

  @property
  def l2(self) -> float:
    """The bound on the L2 norm of a rounded update."""
    return math.sqrt(self.squared)


class Setting(NamedTuple):
  """What determines a grid: arguments of `distributed`, `size` (d) and `block` (B)."""

  noise_multiplier: float
  clients: int
  shares: int
  size: int
  block: int
  beta: float


def grid(setting: Setting, levels: int) -> Grid:
  """Returns the grid of `levels` steps in the clip norm."""
  root, n = math.sqrt(setting.size), setting.clients
  slack = math.sqrt(2 * math.log(1 / setting.beta)) * (levels + root / 2)
  squared = math.floor(min(levels**2 + setting.size / 4 + slack, (levels + root) ** 2))
  variance = setting.noise_multiplier**2 * squared / setting.shares
  signal = (n * levels) ** 2 / min(setting.block, setting.size)
  return Grid(levels, squared, math.sqrt(signal + n / 4 + n * variance))


def finest(setting: Setting, bits: int) -> Grid:
  """Returns the finest grid whose sums fit into `bits` bits.

  Raises:
    NoRoom: no grid fits.
  """
  room = 2 ** (bits - 1) - 1

  def fits(levels: int) -> bool:
    return SPREADS * grid(setting, levels).spread <= float(room)

  if not fits(1):
    least = math.ceil(math.log2(SPREADS * grid(setting, 1).spread + 1)) + 1
    raise NoRoom(
      f'bits must be at least {least} for the noise and the sum of {setting.clients} clients with '
      f'{setting.size} values each, got {bits!r}.'
    )
  # Bisection: `low` fits; `high` does not, or is too fine.
  low, high = 1, FINEST + 1
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return grid(setting, low)


def distributed(
  l2_clip_norm: float,
  noise_multiplier: float,
  *,
  shares: int,
  clients: int,
  dimension: int,
  bits: int = 20,
  mechanism: str | type[Mechanism] = 'skellam',
  beta: float = math.exp(-0.5),
) -> tuple[Layer, ...]:
  """Returns three layers: clip and rotate, round to the grid, add a share of integer noise.

  Place them after the weighing, and `mask` of the same `bits` after them. The last is named
  'integer_noise' and stands in the ledger for all three.

  >>> layers = distributed(5.0, 1e-3, shares=2, clients=2, dimension=2, bits=20)
  >>> mask = fm.stages.masks.mask(clients=2, bits=20)
  >>> fm.apply([[6.0, 8.0], [0.0, 0.0]], layers, mask).update.round(1).tolist()
  [1.5, 2.0]

  Args:
    l2_clip_norm: bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: standard deviation of the noise of `shares` clients over the bound of a
      rounded update, > 0.
    shares: least number of clients that must arrive, in [1, clients]; their noise is accounted.
    clients: n, the most clients of a round; an experiment fills it in.
    dimension: values of an update; an experiment fills it in.
    bits: b, bits of a value of the sum, 2 to 32.
    mechanism: noise for integers that clients add in shares: 'skellam', 'discrete_gaussian', or
      'package.module:Class'.
    beta: bound on the probability that a rounding has to be drawn again, in (0, 1). The larger it
      is, the smaller the bound to which the noise is scaled.

  Raises:
    ValueError: an argument is out of range; `NoRoom`, if the bits are too few for the sum.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  validate.positive(noise_multiplier=noise_multiplier)
  validate.integer(clients=clients)
  validate.integer(at_most=clients, shares=shares)
  validate.integer(at_most=_LARGEST, dimension=dimension)
  validate.integer(at_least=2, at_most=modular.LARGEST, bits=bits)
  kind = mechanisms.find(mechanism, 'l2', integers=True, fresh=True)
  validate.open_fraction(beta=beta)
  block = hadamard.block_size(dimension, largest=BLOCK)
  size = hadamard.padded_size(dimension, block)
  found = finest(Setting(noise_multiplier, clients, shares, size, block, beta), bits)
  step = l2_clip_norm / found.levels
  made = mechanisms.make(kind, noise_multiplier, dimension=size, shares=shares)
  if made is None or not made.carried:
    raise ValueError(f'mechanism must be noise that clients bring in shares, got {mechanism!r}.')
  made.check(kit.within(found.l2).of(None, Bound()), ())
  room = Integers(bits, clients)
  facts = (Noises(made), room, Withholds(shares))
  return (
    _clipped(l2_clip_norm, dimension, block),
    _rounded(found, step, room),
    Layer('integer_noise', client=Stage(_share(made), facts=facts)),
  )


def _rounded(found: Grid, step: float, room: Integers) -> Layer:
  """Returns the layer that rounds to the grid; its bound is in steps and holds after rounding."""
  within = kit.within(found.l2)
  decoded = Bounds(lambda ctx, bound: bound.scaled(step))
  client = Stage(_Rounding(found, step), facts=(within, room))
  server = Stage(_decoding(step, room.bits), facts=(decoded,))
  return Layer('grid', client=client, server=server)


def _clipped(clip_norm: float, dimension: int, block: int) -> Layer:
  """Returns the layer that clips and rotates on the client, and rotates back on the server."""

  def init(ctx: Context) -> Tree:
    whole = tree.not_floats(ctx.spec.update)
    if whole:
      raise IncompatibleStages(
        f"'distributed' clips arrays of floats, and what reaches it holds {whole[0]}: put it "
        'before the layer that encodes.'
      )
    found = tree.size(ctx.spec.update)
    if found != dimension:
      raise ValueError(f'dimension must be the {found} values of an update, got {dimension!r}.')
    return ()

  def client(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    message, _, metrics = kit.clipped(kit.clip_l2, message, clip_norm)
    flat = rotate.rotate(ctx.round_key, tree.ravel(message.update), block)
    return message._replace(update=flat), state, metrics

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    flat = rotate.unrotate(ctx.round_key, message.update, dimension, block)
    return kit.restored(ctx, message, tree.unravel(flat, ctx.spec.update)), state, {}

  bounds = kit.within(float(clip_norm))
  return Layer('distributed', client=Stage(client, init, (bounds,)), server=Stage(server))


class _Rounding:
  """The client side that rounds at random until the rounded update is within the bound."""

  def __init__(self, found: Grid, step: float) -> None:
    self._found, self._step = found, step

  def __call__(self, ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    """Returns (message, state, metrics), as every side of a layer."""
    scaled = message.update * jnp.float32(1 / self._step)
    # As an integer, a value that is not finite would be arbitrary. The engine has noted the client.
    scaled = jnp.where(jnp.isfinite(scaled).all(), scaled, jnp.float32(0))

    def draw(number: jax.Array) -> jax.Array:
      return modular.stochastic_round(jax.random.fold_in(ctx.key, number), scaled)

    def again(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
      number, drawn = carry
      return ~self._inside(drawn) & (number < _TRIES)

    def once_more(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
      return carry[0] + 1, draw(carry[0])

    first = jnp.int32(1), draw(jnp.int32(0))
    tries, drawn = jax.lax.while_loop(again, once_more, first)
    # After the last try: rounding towards zero enlarges no norm.
    inward = jnp.trunc(scaled).astype(jnp.int32)
    update = jnp.where(self._inside(drawn), drawn, inward)
    update = jnp.where(self._inside(update), update, jnp.int32(0))
    return message._replace(update=update), state, {'tries': tries.astype(jnp.float32)}

  def _inside(self, drawn: jax.Array) -> jax.Array:
    return jnp.sum(drawn * drawn, dtype=jnp.int32) <= self._found.squared


def _decoding(step: float, bits: int) -> _Side:
  """Returns the server side that turns the sum modulo 2 ** bits into floats."""

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    del ctx
    whole = modular.centered(message.update, bits)
    update = whole.astype(jnp.float32) * jnp.float32(step)
    return message._replace(update=update), state, {'filled': modular.filled(whole, bits)}

  return server


def _share(made: Mechanism) -> _Side:
  """Returns the client side that adds one share of the noise."""

  def client(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    # Every client that arrives adds a share, even without examples: arrivals are counted as shares.
    share, _ = made.draw(ctx.key, message.update, ctx.bound, ())
    # The sum of weights would be released without noise, so each is 1; the divisor is fixed anyway.
    weight = jnp.ones_like(message.weight)
    return message._replace(update=tree.add(message.update, share), weight=weight), state, {}

  return client
