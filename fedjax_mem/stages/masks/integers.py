"""Updates as integers on a public grid, so that a mask may cover them.

Each value is clipped to a public range, scaled, and rounded at random, without bias, to one of the
two integers next to it. The server decodes the sum. The grid is as fine as b bits allow: the sum
cannot overflow even if all clients send values at the limit of the range.

- codes add; unbiased within the range, up to 2 ** -24 of a step
- error of a value: below one step, range / L with L = min((2 ** (b - 1) - 1) // clients, 2 ** 22)
- norms, of D values: L2 grows by at most step x sqrt(D), L1 by at most step x D, and the largest
  magnitude is at most the range; noise on the sum is scaled to these bounds

Reference: Bonawitz et al. (2017), section 4.1 (vectors modulo R); Kairouz, Liu, Steinke (2021),
arXiv 2102.06387, Algorithm 1 (randomised rounding).
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import (
  Bound,
  Bounds,
  Context,
  IncompatibleStages,
  Integers,
  Layer,
  Mean,
  Message,
  Metrics,
  Stage,
  Tree,
  tree,
  validate,
)
from fedjax_mem.kernels.codes import modular

# Most levels: float32 has 24 bits, and rounding at random needs some of them after the point.
_FINEST = 2**22


def _grown(step: float, value_range: float, dimension: int | None) -> Bounds:
  """Returns the bound of a rounded update, in steps; for L1 and L2 the dimension is needed."""

  def of(ctx: Context, bound: Bound) -> Bound:
    steps = bound.scaled(1 / step)
    linf = value_range / step
    if dimension is None:
      return Bound(linf=linf)
    return Bound(steps.l1 + dimension, steps.l2 + float(dimension) ** 0.5, linf)

  return Bounds(
    of, 'rounding enlarges it by what depends on the number of values: give it dimension'
  )


def integers(
  value_range: float, *, clients: int, bits: int = 32, dimension: int | None = None
) -> Layer:
  """Returns the layer that sends values as integers, whose sum is taken modulo 2 ** bits.

  Place it after the weighing and a clip, before `mask`. Values beyond the range are clipped, which
  adds bias; the metric `outside` is the share of such values. The metric `filled` is the largest
  magnitude in the sum over the largest that b bits hold. An update that is not finite becomes
  zeros, and the engine leaves its client out.

  >>> made = fm.apply([[6.0, 8.0], [3.0, 9.0]], integers(8.0, clients=2))
  >>> made.update.round(3).tolist(), made.metrics['integers/outside'].item()
  ([4.5, 8.0], 0.25)

  Args:
    value_range: largest magnitude of a weighted value, public, > 0.
    clients: the most clients of a round; an experiment fills it in.
    bits: bits of a value of the sum, 2 to 32.
    dimension: values of an update, or an upper bound of it; None: the L1 and L2 norms of the sent
      integers are unknown, and noise on the sum is refused. An experiment fills it in.

  Raises:
    ValueError: an argument is out of range, or the bits are too few for the sum of the clients.
  """
  validate.positive(value_range=value_range)
  validate.integer(clients=clients)
  validate.integer(at_least=2, at_most=modular.LARGEST, bits=bits)
  if dimension is not None:
    validate.integer(dimension=dimension)
  levels = _levels(clients, bits)
  step = value_range / levels

  def client(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    leaves, structure = jax.tree.flatten(message.update)
    scaled = [x.astype(jnp.float32) * jnp.float32(1 / step) for x in leaves]
    # As an integer, a value that is not finite would be arbitrary. The engine has noted the client.
    ok = tree.finite(scaled)
    top = jnp.float32(levels)
    inside = [jnp.clip(x, -top, top) for x in scaled]
    keys = jax.random.split(ctx.key, len(leaves))
    rounded = [modular.stochastic_round(k, x) for k, x in zip(keys, inside, strict=True)]
    update = tree.keep(ok, jax.tree.unflatten(structure, rounded))
    on = (message.weight > 0).astype(jnp.float32)
    # A value at the limit may exceed it by a rounding error; it does not count as outside.
    beyond = sum((jnp.sum(jnp.abs(x) > top * (1 + 1e-6)) for x in scaled), jnp.int32(0))
    metrics = {'outside': Mean(on * beyond.astype(jnp.float32), on * tree.size(update))}
    return message._replace(update=update), state, metrics

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    whole = jax.tree.map(lambda x: modular.centered(x, bits), message.update)
    back = lambda x, like: (x.astype(jnp.float32) * jnp.float32(step)).astype(like.dtype)
    update = jax.tree.map(back, whole, ctx.spec.update)
    return message._replace(update=update), state, {'filled': modular.filled(whole, bits)}

  init = lambda ctx: _check_update(ctx.spec.update, dimension)
  return Layer(
    'integers',
    client=Stage(client, init, (_grown(step, value_range, dimension), Integers(bits, clients))),
    server=Stage(server, facts=(Bounds(lambda ctx, bound: bound.scaled(step)),)),
  )


def _levels(clients: int, bits: int) -> int:
  """Returns L, the steps of the grid in the range.

  Raises:
    ValueError: the bits are too few for the sum of the clients.
  """
  levels: int = min((2 ** (bits - 1) - 1) // clients, _FINEST)
  if levels < 1:
    raise ValueError(
      f'bits must be at least {clients.bit_length() + 1} to hold the sum of {clients} clients, '
      f'got {bits!r}.'
    )
  return levels


def _check_update(update: Tree, dimension: int | None) -> tuple[()]:
  """Returns the state of a client, which is empty.

  Raises:
    IncompatibleStages: the update holds arrays that are not floats.
    ValueError: the update has more than `dimension` values.
  """
  other = tree.not_floats(update)
  if other:
    raise IncompatibleStages(
      f"'integers' encodes floats, and its update holds {other[0]}: remove it, or put it "
      'before the layer that leaves integers.'
    )
  if dimension is not None and tree.size(update) > dimension:
    raise ValueError(
      f'dimension must be at least the {tree.size(update)} values of an update, got {dimension!r}.'
    )
  return ()
