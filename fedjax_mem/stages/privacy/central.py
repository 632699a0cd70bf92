"""Central differential privacy by client: clip each whole update, add noise to the sum.

Reference: McMahan et al. (2018), arXiv 1710.06963, Algorithm 1.
"""

import jax.numpy as jnp

from fedjax_mem import mechanisms
from fedjax_mem.core import (
  Bound,
  Context,
  Integers,
  Layer,
  Mechanism,
  Message,
  Stage,
  tree,
  validate,
)
from fedjax_mem.stages.privacy import _clipping as clipping
from fedjax_mem.stages.privacy import _noising as noising
from fedjax_mem.stages.privacy._central import layer

_WORD = 32  # bits of the sum of updates on the grid


def central(
  l2_clip_norm: float,
  noise_multiplier: float,
  *,
  mechanism: str | type[Mechanism] = 'gaussian',
  per_layer: bool = False,
  levels: int = 1024,
  dimension: int | None = None,
) -> Layer:
  """Returns the layer that clips each update to an L2 ball and noises the sum.

  Place it after the weighing: the clip then covers the weight, and the noise is added before the
  division.

  Args:
    l2_clip_norm: C, bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: standard deviation of the noise over the bound; 0 clips only, and then claims
      no privacy at all.
    mechanism: noise scaled to the L2 norm: 'gaussian', 'package.module:Class', or for integers,
      such as 'discrete_gaussian': updates on an integer grid, summed as int32.
    per_layer: clip each of L arrays to C / sqrt(L) instead of all together; the bound stays C.
    levels: of noise for integers: steps of the grid in the clip norm, 1 to 16384.
    dimension: values of an update, for noise that needs it; an experiment fills it in.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  validate.non_negative(noise_multiplier=noise_multiplier)
  kind = mechanisms.find(mechanism, 'l2', fresh=True)
  validate.integer(at_most=2**14, levels=levels)
  clip = clipping.choose(per_layer)
  if dimension is not None:
    validate.integer(dimension=dimension)
  made = mechanisms.make(kind, noise_multiplier, dimension=dimension)
  if kind.integers:
    return _discrete(l2_clip_norm, made, clip, levels)
  return layer('central', clip, l2_clip_norm, noising.within(float(l2_clip_norm)), made)


def _discrete(clip_norm: float, made: Mechanism | None, clip: clipping.Clip, levels: int) -> Layer:
  """Returns the layer whose updates are int32 on a grid of `levels` steps in the clip norm."""
  step = clip_norm / levels
  # In steps of the grid, on which the noise is added; rounding is in it.
  grid = noising.within(float(levels))
  if made is not None:
    made.check(grid.of(None, Bound()), ())

  def client(ctx: Context, message: Message, state):
    del ctx
    message, _, metrics = clipping.clipped(clip, message, clip_norm)
    # A value that is not finite would become some integer or other: such a client takes no part.
    points, ok = clipping.on_grid(message.update, clip_norm, levels)
    update = tree.keep(ok, points)
    return message._replace(update=update), state, metrics

  def server(ctx: Context, message: Message, state):
    total = message.update
    if made is not None:
      drawn, state = made.draw(ctx.key, total, ctx.bound, state)
      total = tree.add(total, drawn)
    floats = tree.scale(jnp.float32(step), clipping.floats(total))
    return clipping.restored(ctx, message, floats), state, {}

  room = Integers(_WORD, (2 ** (_WORD - 1) - 1) // levels)
  noisy = Stage(server) if made is None else noising.stated(server, made)
  return Layer('central', client=Stage(client, facts=(grid, room)), server=noisy)
