"""Error feedback as codecs share it: what a codec leaves out is added to the next update.

A client sends C(update + memory) and remembers update + memory - decoded. For codecs that send less
error than they are given (top-k, unscaled random-k, sign, low rank, …) this restores the rate of
convergence without compression.

Client state: the memory, float32 [D] a client, so [N, D] on the devices; it moves only when the
client takes part, and a client that rarely returns sends stale errors, which the plan of a run
warns of. The memory is in the units of the message: after the weighing, of weighted updates.

Privacy: the memory has no bound, so nothing is bounded after it: put it before the clip.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Encodes, Layer, Mean, Message, Stage, tree
from fedjax_mem.stages.compress._base import Exchange, unbounded

Tree = Any


ALREADY = 'it is under error feedback already'


REMEMBERS = unbounded('what error feedback remembers has no bound')


def under_feedback(layer: Layer, name: str) -> Layer:
  """Returns the layer under error feedback, with a name of its own."""
  client = Feedback(layer)
  codec = layer.client.fact(Encodes).codec  # type: ignore[union-attr]
  encodes = Encodes(Exchange(codec.name, codec.adds, ALREADY))
  return layer._replace(name=name, client=Stage(client, client.init, (REMEMBERS, encodes)))


def floats(update: Tree) -> Tree:
  """Returns the update in float32."""
  return jax.tree.map(lambda x: x.astype(jnp.float32), update)


@dataclasses.dataclass(frozen=True)
class Feedback:
  """The client side of a codec under error feedback.

  Attributes:
    layer: of the codec.
  """

  layer: Layer

  def __call__(self, ctx: Context, message: Message, state: Tree):
    """Returns (message, state, metrics), as every side of a layer."""
    memory, inner = state
    whole = tree.add(floats(message.update), memory)
    asked = jax.tree.map(lambda x, like: x.astype(like.dtype), whole, message.update)
    apply = self.layer.client.apply  # type: ignore[union-attr]
    sent, new, metrics = apply(ctx, message._replace(update=asked), inner)
    # What the server would make of this message alone.
    own = sent
    if self.layer.server is not None:
      own, _, _ = self.layer.server.apply(ctx, sent, ctx.server_state)
    on = message.weight > 0
    takes = on.astype(jnp.float32)
    left = tree.select(on, tree.sub(whole, floats(own.update)), memory)
    state = left, tree.select(on, new, inner)
    return sent, state, {**metrics, 'memory': Mean(takes * tree.norm(left), takes)}

  def init(self, ctx: Context) -> Tree:
    """Returns the state of a client: an empty memory, and the codec's own."""
    inner = self.layer.row(ctx)
    return floats(tree.zeros(ctx.spec.update)), inner
