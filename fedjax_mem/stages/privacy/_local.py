"""Local differential privacy: what its methods share, a clip and noise on the client.

Each method gives two layers: the clip, and the noise, which goes by the plain name and is scaled
to what the clip leaves.

Formal guarantee: what the server sees of a client in one participation is the mechanism on its
clipped update, whoever else takes part. Nothing is gained by sampling: the ledger follows the
client that took part most often.

Reference: Duchi, Jordan, Wainwright (2013), arXiv 1302.3203; Kasiviswanathan et al. (2011),
arXiv 0803.0924.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from fedjax_mem import mechanisms
from fedjax_mem.core import (
  Bounds,
  Context,
  IncompatibleStages,
  Layer,
  Mechanism,
  Message,
  Noises,
  Stage,
  tree,
  validate,
)
from fedjax_mem.stages.privacy import _clipping as clipping
from fedjax_mem.stages.privacy import _noising as noising

Tree = Any


def noise_of_floats(
  mechanism: str | type[Mechanism], norm: str, multiplier: float
) -> Mechanism | None:
  """Returns the noise of floats that is named, or None where there is none."""
  validate.non_negative(noise_multiplier=multiplier)
  return mechanisms.make(mechanisms.find(mechanism, norm, integers=False, fresh=True), multiplier)


def added(drawn: Tree, update: Tree) -> Tree:
  return tree.add(update, drawn)


def layers(
  name: str,
  clip: clipping.Clip,
  clip_norm: float,
  own: Bounds,
  made: Mechanism | None,
  after: Callable[[Tree], Tree] = lambda update: update,
  noisy: Callable[[Tree, Tree], Tree] = added,
) -> tuple[Layer, ...]:
  """Returns the layer that clips, and the one that noises with the client's own key.

  Args:
    name: of the noise.
    clip: brings an update into a ball.
    clip_norm: its size.
    own: what is left by the clip and `after`.
    made: the noise, or None.
    after: what is done to a clipped update.
    noisy: (noise, update) -> what is sent.
  """

  def init(ctx: Context):
    whole = tree.not_floats(ctx.spec.update)
    if whole:
      raise IncompatibleStages(
        f'{name!r} clips arrays of floats, and what reaches it holds {whole[0]}: put it before the '
        'layer that encodes.'
      )
    return ()

  def clipped(ctx: Context, message: Message, state):
    del ctx
    message, _, metrics = clipping.clipped(clip, message, clip_norm)
    metrics = {f'{name}/{key}': value for key, value in metrics.items()}
    return message._replace(update=after(message.update)), state, metrics

  def noised(ctx: Context, message: Message, state):
    drawn, _ = made.draw(ctx.key, message.update, ctx.bound, ())  # type: ignore[union-attr]
    # A client of weight 0 takes no part: it sends nothing.
    on = message.weight > 0
    sent = tree.keep(on, noisy(drawn, message.update))
    # Nor does the weight say more than that it takes part: it is sent without noise.
    return message._replace(update=sent, weight=on.astype(jnp.float32)), state, {}

  ball = Layer(f'{name}_clip', client=Stage(clipped, init, (own,)), server=noising.quiet())
  if made is None:
    return (ball,)
  return ball, Layer(name, client=Stage(noised, facts=(Noises(made, 'local'),)))
