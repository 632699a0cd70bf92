"""What the privacy layers share on the server: noise on the sum, scaled to what one client can do.

The scale is not written down twice: the client side states the bound that it leaves, the layers
after it state what they make of that, and the noise reads `ctx.bound`, what the round composes.
"""

from typing import Any

from fedjax_mem.core import Bound, Bounds, Context, Message, tree
from fedjax_mem.stages.privacy import clipping

Tree = Any


def added(ctx: Context, message: Message, noise: Tree) -> Message:
  """Returns the sum with noise added in float32, in the dtypes that the client side received."""
  return clipping.restored(ctx, message, tree.add(clipping.floats(message.update), noise))


def within(l2: float) -> Bounds:
  """Returns the fact of an update whose L2 norm is at most `l2`, whatever enters."""
  return Bounds(lambda ctx, bound: Bound(l2=l2, linf=l2))


def within_l1(l1: float) -> Bounds:
  """Returns the fact of an update whose L1 norm is at most `l1`, whatever enters."""
  return Bounds(lambda ctx, bound: Bound(l1, l1, l1))


KEPT = Bounds(lambda ctx, bound: bound)
