"""What the methods of local differential privacy share: a clip and noise on the client.

Each method gives two layers: the clip, named `<method>_clip`, and the noise, named after the method
and scaled to the bound that the clip leaves.

Formal guarantee: in one participation the server sees of a client only the mechanism applied to its
clipped update, whichever other clients take part. Sampling gives no amplification: the ledger
follows the client that took part most often.

Reference: Duchi, Jordan, Wainwright (2013), arXiv 1302.3203; Kasiviswanathan et al. (2011),
arXiv 0803.0924.
"""

from collections.abc import Callable

import jax.numpy as jnp

from fedjax_mem.core import (
  Bounds,
  Context,
  IncompatibleStages,
  Layer,
  Mechanism,
  Message,
  Metrics,
  Noises,
  Stage,
  Tree,
  tree,
)
from fedjax_mem.stages.privacy import _base as kit


def added(drawn: Tree, update: Tree) -> Tree:
  """Returns the update with the noise added."""
  return tree.add(update, drawn)


def layers(
  name: str,
  clip: kit.Clip,
  clip_norm: float,
  own: Bounds,
  made: Mechanism | None,
  after: Callable[[Tree], Tree] = lambda update: update,
  noisy: Callable[[Tree, Tree], Tree] = added,
) -> tuple[Layer, ...]:
  """Returns the layer that clips, and the layer that adds noise drawn with the client's own key.

  Args:
    name: name of the method, and of the second layer.
    clip: brings an update into the ball of `clip_norm`.
    clip_norm: radius of the ball, > 0.
    own: what the clip and `after` promise together.
    made: the noise; None: only the layer that clips is returned.
    after: applied to the clipped update.
    noisy: (noise, update) -> update to send.
  """

  def init(ctx: Context) -> Tree:
    whole = tree.not_floats(ctx.spec.update)
    if whole:
      raise IncompatibleStages(
        f'{name!r} clips arrays of floats, and what reaches it holds {whole[0]}: put it before the '
        'layer that encodes.'
      )
    return ()

  def clipped(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    del ctx
    message, _, metrics = kit.clipped(clip, message, clip_norm)
    metrics = {f'{name}/{key}': value for key, value in metrics.items()}
    return message._replace(update=after(message.update)), state, metrics

  ball = Layer(f'{name}_clip', client=Stage(clipped, init, (own,)), server=kit.quiet())
  if made is None:
    return (ball,)

  def noised(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    drawn, _ = made.draw(ctx.key, message.update, ctx.bound, ())
    # A client of weight 0 takes no part: it sends nothing.
    on = message.weight > 0
    sent = tree.keep(on, noisy(drawn, message.update))
    # The weight is sent without noise, so it is 0 or 1: whether the client takes part.
    return message._replace(update=sent, weight=on.astype(jnp.float32)), state, {}

  return ball, Layer(name, client=Stage(noised, facts=(Noises(made, 'local'),)))
