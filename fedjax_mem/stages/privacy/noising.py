"""What the privacy layers share on the server: noise on the sum, scaled to what one client can do.

The scale is not written down twice: a layer states what its client half is bounded by, and asks
what the layers after it make of that bound (a codec that rounds may enlarge it). Who plans the
round tells it, see `fedjax_mem.engine.guarantees`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from fedjax_mem.core import Bound, Context, Message, tree
from fedjax_mem.stages.privacy import clipping

Tree = Any
Outside = Callable[[Bound], Bound]
# (ctx, sum, state, what the layers after this one do to a bound) -> (value, state, metrics)
Release = Callable[[Context, Message, Tree, Outside], tuple[Message, Tree, dict[str, Any]]]


def _keep(bound: Bound) -> Bound:
  return bound


@dataclasses.dataclass(frozen=True)
class NoiseOnSum:
  """A server half that adds noise to the sum; it can be `told` what is done to its bound.

  Attributes:
    release: what it does.
    outside: a bound of what leaves this layer's client half -> the bound in the sum, in the same
      units.
  """

  release: Release
  outside: Outside = _keep

  def __call__(self, ctx: Context, message: Message, state: Tree):
    """Returns (value, state, metrics), as every half of a layer."""
    return self.release(ctx, message, state, self.outside)

  def told(self, outside: Outside) -> 'NoiseOnSum':
    """Returns the half that scales its noise to `outside` of its own bound."""
    return dataclasses.replace(self, outside=outside)


def added(ctx: Context, message: Message, noise: Tree) -> Message:
  """Returns the sum with noise added in float32, in the dtypes that the client half received."""
  return clipping.restored(ctx, message, tree.add(clipping.floats(message.payload), noise))


def within(l2: Any) -> Bound:
  """Returns the bound of a payload whose L2 norm is at most `l2`."""
  return Bound(l2=l2, linf=l2)
