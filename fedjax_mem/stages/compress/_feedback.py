"""Error feedback: the error of a codec is kept as a residual and added to the next update.

A client sends C(update + residual); its new residual is update + residual - decoded. For codecs
whose error is smaller than the update (top-k, unscaled random-k, sign, low rank, …) this restores
the convergence rate of training without compression.

Client state: the residual, float32 [D] a client, so [N, D] on the devices. It changes only when the
client takes part. A client that rarely returns sends a stale residual, of which the plan of a run
warns. The residual has the units of the message: after the weighing, of weighted updates.

Privacy: the residual has no bound, so no update is bounded after this layer: put it before the
clip.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Encodes, Layer, Mean, Message, Metrics, Stage, Tree, tree
from fedjax_mem.stages.compress._base import Exchange, unbounded

ALREADY = 'it is under error feedback already'
REMEMBERS = unbounded('what error feedback remembers has no bound')


def under_feedback(layer: Layer, name: str) -> Layer:
  """Returns a codec's layer under error feedback, with a new name."""
  client = Feedback(layer)
  codec = layer.client.fact(Encodes).codec  # type: ignore[union-attr]
  encodes = Encodes(Exchange(codec.name, codec.adds, ALREADY))
  return layer._replace(name=name, client=Stage(client, client.init, (REMEMBERS, encodes)))


@dataclasses.dataclass(frozen=True)
class Feedback:
  """The client side of a codec under error feedback.

  Attributes:
    layer: the codec's layer.
  """

  layer: Layer

  def __call__(self, ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    """Returns (message, state, metrics), as every side of a layer."""
    residual, inner = state
    whole = tree.add(tree.floats(message.update), residual)
    given = jax.tree.map(lambda x, like: x.astype(like.dtype), whole, message.update)
    apply = self.layer.client.apply  # type: ignore[union-attr]
    sent, new, metrics = apply(ctx, message._replace(update=given), inner)
    # If codes add, the message is the code: the residual needs what it is decoded to.
    own = sent
    if self.layer.server is not None:
      own, _, _ = self.layer.server.apply(ctx, sent, ctx.server_state)
    on = message.weight > 0
    takes = on.astype(jnp.float32)
    left = tree.select(on, tree.sub(whole, tree.floats(own.update)), residual)
    state = left, tree.select(on, new, inner)
    return sent, state, {**metrics, 'memory': Mean(takes * tree.norm(left), takes)}

  def init(self, ctx: Context) -> Tree:
    """Returns the state of a client: a residual of zeros, and the codec's own state."""
    inner = self.layer.row(ctx)
    return tree.floats(tree.zeros(ctx.spec.update)), inner
