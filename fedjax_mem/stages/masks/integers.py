"""The codec that adds: updates as integers on a public grid, so that masks may cover them.

Each value is clipped to a public range, scaled, and rounded at random to one of the two integers
next to it, so that its expectation stays; the server decodes the sum. The grid is as fine as b bits
allow for the sum of all clients at the limit: the sum cannot overflow.

- adds: yes; unbiased within the range, up to 2 ** -24 of a step
- error of a value: below one step, range / L with L = min((2 ** (b - 1) - 1) // clients, 2 ** 22)
- norms: L2 grows by a step times the root of the values at the most, L1 by a step times the values,
  the largest by a step: noise on the sum is scaled to that

Reference: Bonawitz et al. (2017), section 4.1 (vectors modulo R); Kairouz, Liu, Steinke (2021),
arXiv 2102.06387, Algorithm 1 (randomised rounding).
"""

from typing import Any

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
  Stage,
  tree,
  validate,
)
from fedjax_mem.kernels.codes import modular

# More levels than this leave float32 nothing to round.
_FINEST = 2**22


def _grown(step: float, value_range: float, dimension: int | None) -> Bounds:
  """Returns what rounding does to norms, in steps; L1 and L2 need the number of values."""

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
  biases them, and reported as `outside`, the share of such values. `filled` is the largest value of
  the sum over the largest there is room for. An update that is not finite is sent as zeros.

  Args:
    value_range: the largest magnitude of a value, its weight included, public, > 0.
    clients: the most clients of a round; an experiment fills it in.
    bits: of a value of the sum, 2 to 32.
    dimension: values of an update, or more; None: the L1 and L2 norm of what is sent are unknown,
      and noise on the sum is refused. An experiment fills it in.

  Raises:
    ValueError: an argument is out of range, or so few bits cannot hold the sum of the clients.
  """
  validate.positive(value_range=value_range)
  validate.integer(clients=clients)
  validate.integer(at_least=2, at_most=modular.LARGEST, bits=bits)
  if dimension is not None:
    validate.integer(dimension=dimension)
  levels = min((2 ** (bits - 1) - 1) // clients, _FINEST)
  if levels < 1:
    raise ValueError(
      f'bits must be at least {clients.bit_length() + 1} to hold the sum of {clients} clients, '
      f'got {bits!r}.'
    )
  step = value_range / levels

  def client(ctx: Context, message: Message, state):
    leaves, structure = jax.tree.flatten(message.update)
    scaled = [x.astype(jnp.float32) * jnp.float32(1 / step) for x in leaves]
    # A value that is not finite would become some integer or other.
    ok = tree.finite(scaled)
    top = jnp.float32(levels)
    inside = [jnp.clip(x, -top, top) for x in scaled]
    keys = jax.random.split(ctx.key, len(leaves))
    rounded = [modular.stochastic_round(k, x) for k, x in zip(keys, inside, strict=True)]
    update = tree.keep(ok, jax.tree.unflatten(structure, rounded))
    on = (message.weight > 0).astype(jnp.float32)
    beyond = sum((jnp.sum(jnp.abs(x) > top * (1 + 1e-6)) for x in scaled), jnp.int32(0))
    metrics = {'outside': Mean(on * beyond.astype(jnp.float32), on * tree.size(update))}
    return message._replace(update=update), state, metrics

  def server(ctx: Context, message: Message, state):
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


def _check_update(update: Any, dimension: int | None) -> tuple[()]:
  """Returns the state of a client, which is empty, or raises for what cannot be encoded."""
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
