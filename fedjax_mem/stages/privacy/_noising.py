"""What the privacy layers share on the server: noise on the sum, scaled to what one client can do.

The scale is not written down twice: the client side states the bound that it leaves, the layers
after it state what they make of that, and the noise reads `ctx.bound`, what the round composes.
"""

from collections.abc import Callable
from typing import Any

from fedjax_mem.core import Bound, Bounds, Context, Layer, Mechanism, Message, Noises, Stage, tree
from fedjax_mem.stages.privacy import _clipping as clipping

Tree = Any


def added(ctx: Context, message: Message, noise: Tree) -> Message:
  """Returns the sum with noise added in float32, in the dtypes that the client side received."""
  return clipping.restored(ctx, message, tree.add(clipping.floats(message.update), noise))


def release(made: Mechanism) -> Stage:
  """Returns the server side that adds a mechanism's noise to a sum of floats."""

  def apply(ctx: Context, message: Message, state: Tree):
    drawn, state = made.draw(ctx.key, message.update, ctx.bound, state)
    return added(ctx, message, drawn), state, {}

  return stated(apply, made)


def stated(apply: Callable[..., Any], made: Mechanism) -> Stage:
  """Returns the server side that adds a mechanism's noise, and keeps its state."""
  return Stage(apply, lambda ctx: made.init(ctx.spec.update), (Noises(made),))


def clip_and_release(name: str, l2_clip_norm: float, made: Mechanism) -> Layer:
  """Returns the layer that clips each whole update in L2, and adds the noise to the sum."""

  def client(ctx: Context, message: Message, state: Tree):
    del ctx
    message, _, metrics = clipping.clipped(clipping.l2, message, l2_clip_norm)
    return message, state, metrics

  own = within(float(l2_clip_norm))
  return Layer(name, client=Stage(client, facts=(own,)), server=release(made))


def quiet() -> Stage:
  """Returns the server side of a layer that only clips."""
  return Stage(lambda ctx, m, state: (clipping.restored(ctx, m, m.update), state, {}))


def within(l2: float) -> Bounds:
  """Returns the fact of an update whose L2 norm is at most `l2`, whatever enters."""
  return Bounds(lambda ctx, bound: Bound(l2=l2, linf=l2))


def within_l1(l1: float) -> Bounds:
  """Returns the fact of an update whose L1 norm is at most `l1`, whatever enters."""
  return Bounds(lambda ctx, bound: Bound(l1, l1, l1))
