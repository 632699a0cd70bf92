"""Local differential privacy: each client clips and noises its own update before it leaves.

Each factory gives two layers: the clip, and the noise, which goes by the plain name and is scaled
to what the clip leaves.

Formal guarantee: what the server sees of a client in one participation is the mechanism on its
clipped update, whoever else takes part. Nothing is gained by sampling: the ledger follows the
client that took part most often.

Reference: Duchi, Jordan, Wainwright (2013), arXiv 1302.3203; Kasiviswanathan et al. (2011),
arXiv 0803.0924.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem import mechanisms
from fedjax_mem.core import (
  Bound,
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
from fedjax_mem.stages.privacy import clipping, noising

Tree = Any


def local(
  l2_clip_norm: float,
  noise_multiplier: float,
  *,
  mechanism: str | type[Mechanism] = 'gaussian',
  per_layer: bool = False,
) -> tuple[Layer, ...]:
  """Returns the layers in which each client clips its update in L2 and adds noise.

  Args:
    l2_clip_norm: bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: standard deviation of each client's noise over the bound; 0 clips only.
    mechanism: noise of floats scaled to the L2 norm: 'gaussian', or 'package.module:Class'.
    per_layer: clip each of L arrays to l2_clip_norm / sqrt(L) instead of all together.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  clip = clipping.choose(per_layer)
  made = _floats(mechanism, 'l2', noise_multiplier)
  return _layers('local', clip, l2_clip_norm, noising.within(float(l2_clip_norm)), made)


def local_laplace(
  l1_clip_norm: float,
  noise_multiplier: float,
  *,
  mechanism: str | type[Mechanism] = 'laplace',
) -> tuple[Layer, ...]:
  """Returns the layers in which each client clips its update in L1 and adds Laplace noise.

  Args:
    l1_clip_norm: bound on the L1 norm of a client's whole update, > 0.
    noise_multiplier: scale of each client's noise over the bound; 0 clips only.
    mechanism: noise of floats scaled to the L1 norm: 'laplace', or 'package.module:Class'.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l1_clip_norm=l1_clip_norm)
  made = _floats(mechanism, 'l1', noise_multiplier)
  own = noising.within_l1(float(l1_clip_norm))
  return _layers('local_laplace', clipping.l1, l1_clip_norm, own, made)


def local_discrete(
  l2_clip_norm: float,
  noise_multiplier: float,
  *,
  mechanism: str | type[Mechanism] = 'discrete_gaussian',
  levels: int = 1024,
) -> tuple[Layer, ...]:
  """Returns the layers in which each client rounds its update to a grid and adds integer noise.

  Clipped in L2, rounded to `levels` steps in the clip norm, noised there,
  and sent as floats: a float32 holds every such integer.

  Reference: Canonne, Kamath, Steinke (2020), arXiv 2004.00010.

  Args:
    l2_clip_norm: bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: parameter sigma of each client's noise over the bound; 0 clips only.
    mechanism: noise for integers scaled to the L2 norm: 'discrete_gaussian', or
      'package.module:Class'.
    levels: steps of the grid in the clip norm, 1 to 16384.

  Raises:
    ValueError: an argument is out of range, or noise_multiplier * levels is over 100000.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  clipping.check_multiplier(noise_multiplier)
  validate.integer(at_most=2**14, levels=levels)
  kind = mechanisms.find(mechanism, 'l2', integers=True, fresh=True)
  made = mechanisms.make(kind, noise_multiplier)
  if made is None:
    own = noising.within(float(l2_clip_norm))
    return _layers('local_discrete', clipping.l2, l2_clip_norm, own, None)
  grid = noising.within(float(levels))
  made.check(grid.of(None, Bound()), ())

  def points(update: Tree) -> Tree:
    whole, ok = clipping.on_grid(update, l2_clip_norm, levels)
    # What is not finite must stay so, for the engine to leave the client out.
    return jax.tree.map(lambda x: jnp.where(ok, x, jnp.float32(jnp.nan)), clipping.floats(whole))

  def noisy(drawn: Tree, update: Tree) -> Tree:
    fine = tree.finite(update)
    whole = jax.tree.map(lambda x: jnp.where(fine, x, 0).astype(jnp.int32), update)
    sent = tree.scale(jnp.float32(l2_clip_norm / levels), clipping.floats(tree.add(whole, drawn)))
    return jax.tree.map(lambda x: jnp.where(fine, x, jnp.float32(jnp.nan)), sent)

  return _layers('local_discrete', clipping.l2, l2_clip_norm, grid, made, points, noisy)


def _floats(mechanism: str | type[Mechanism], norm: str, multiplier: float) -> Mechanism | None:
  """Returns the noise of floats that is named, or None where there is none."""
  clipping.check_multiplier(multiplier)
  return mechanisms.make(mechanisms.find(mechanism, norm, integers=False, fresh=True), multiplier)


def _added(drawn: Tree, update: Tree) -> Tree:
  return tree.add(update, drawn)


def _layers(
  name: str,
  clip: clipping.Clip,
  clip_norm: float,
  own: Bounds,
  made: Mechanism | None,
  after: Callable[[Tree], Tree] = lambda update: update,
  noisy: Callable[[Tree, Tree], Tree] = _added,
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
