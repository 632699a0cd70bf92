"""Local differential privacy: each client clips and noises its own update before it leaves.

Formal guarantee: what the server sees of a client in one participation is a Gaussian, Laplace or
discrete Gaussian mechanism on its clipped update, whoever else takes part. Nothing is gained by
sampling: the ledger follows the client that took part most often.

Reference: Duchi, Jordan, Wainwright (2013), arXiv 1302.3203; Kasiviswanathan et al. (2011),
arXiv 0803.0924.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Bounds, Context, Layer, Message, Noises, Stage, tree, validate
from fedjax_mem.core.mechanism import Mechanism
from fedjax_mem.kernels import noise
from fedjax_mem.stages.privacy import clipping, noising

Tree = Any


def local(l2_clip_norm: float, noise_multiplier: float, *, per_layer: bool = False) -> Layer:
  """Returns the layer in which each client clips its update in L2 and adds Gaussian noise.

  Args:
    l2_clip_norm: bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: standard deviation of each client's noise over the bound; 0 clips only.
    per_layer: clip each of L arrays to l2_clip_norm / sqrt(L) instead of all together.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  clip = clipping.choose(per_layer)
  clipping.check_multiplier(noise_multiplier)

  def noisy(key: jax.Array, update: Tree) -> Tree:
    return tree.add(update, noise.gaussian(key, update, noise_multiplier * l2_clip_norm))

  made = Mechanism('gaussian', noise_multiplier, trust='local') if noise_multiplier else None
  own = noising.within(float(l2_clip_norm))
  return _layer('local', clip, l2_clip_norm, noisy, made, own)


def local_laplace(l1_clip_norm: float, noise_multiplier: float) -> Layer:
  """Returns the layer in which each client clips its update in L1 and adds Laplace noise.

  Args:
    l1_clip_norm: bound on the L1 norm of a client's whole update, > 0.
    noise_multiplier: scale of each client's noise over the bound; 0 clips only.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l1_clip_norm=l1_clip_norm)
  clipping.check_multiplier(noise_multiplier)

  def noisy(key: jax.Array, update: Tree) -> Tree:
    return tree.add(update, noise.laplace(key, update, noise_multiplier * l1_clip_norm))

  made = Mechanism('laplace', noise_multiplier, trust='local') if noise_multiplier else None
  own = noising.within_l1(float(l1_clip_norm))
  return _layer('local_laplace', clipping.l1, l1_clip_norm, noisy, made, own)


def local_discrete(l2_clip_norm: float, noise_multiplier: float, *, levels: int = 1024) -> Layer:
  """Returns the layer in which each client rounds its update to a grid and adds discrete noise.

  Clipped in L2, rounded to `levels` steps in the clip norm, noised there by a discrete Gaussian,
  and sent as floats: a float32 holds every such integer.

  Reference: Canonne, Kamath, Steinke (2020), arXiv 2004.00010.

  Args:
    l2_clip_norm: bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: parameter sigma of each client's noise over the bound; 0 clips only.
    levels: steps of the grid in the clip norm, 1 to 16384.

  Raises:
    ValueError: an argument is out of range, or noise_multiplier * levels is over 100000.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  clipping.check_multiplier(noise_multiplier)
  validate.integer(at_most=2**14, levels=levels)
  # The table of the least noise there is stands in where none is drawn.
  table = noise.discrete_table(noise_multiplier * levels or 1.0)

  def noisy(key: jax.Array, update: Tree) -> Tree:
    points, ok = clipping.on_grid(update, l2_clip_norm, levels)
    points = tree.add(points, noise.discrete_gaussian(key, points, table))
    sent = tree.scale(jnp.float32(l2_clip_norm / levels), clipping.floats(points))
    # What is not finite must stay so, for the engine to leave the client out.
    return jax.tree.map(lambda x: jnp.where(ok, x, jnp.float32(jnp.nan)), sent)

  made = None
  if noise_multiplier:
    made = Mechanism('discrete_gaussian', noise_multiplier, trust='local', l2=float(levels))
  own = noising.within(float(l2_clip_norm))
  return _layer('local_discrete', clipping.l2, l2_clip_norm, noisy, made, own)


def _layer(
  name: str,
  clip: clipping.Clip,
  clip_norm: float,
  noisy: Callable[[jax.Array, Tree], Tree],
  made: Mechanism | None,
  own: Bounds,
) -> Layer:
  """Returns the layer whose client side clips, then noises with the client's own key."""

  def client(ctx: Context, message: Message, state):
    message, _, metrics = clipping.clipped(clip, message, clip_norm)
    # A client of weight 0 takes no part: it sends nothing.
    sent = tree.keep(message.weight > 0, noisy(ctx.key, message.update))
    return message._replace(update=sent), state, metrics

  def quiet(ctx: Context, message: Message, state):
    del ctx
    message, _, metrics = clipping.clipped(clip, message, clip_norm)
    return message, state, metrics

  def server(ctx: Context, message: Message, state):
    return clipping.restored(ctx, message, message.update), state, {}

  # Noise has no bound; without it the clip's holds.
  noisy_side = Stage(client, facts=(Noises(made),)) if made else Stage(quiet, facts=(own,))
  return Layer(name, client=noisy_side, server=Stage(server))
