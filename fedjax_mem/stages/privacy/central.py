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
  Metrics,
  Stage,
  Tree,
  tree,
  validate,
)
from fedjax_mem.stages.privacy import _base as kit

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
  """Returns the layer that clips each update to an L2 ball and adds noise to the sum.

  Place it after the weighing: the clip then covers the weight, and the noise is added before the
  division.

  >>> fm.apply([[6.0, 8.0], [0.0, 0.0]], central(5.0, 1e-6)).update.round(3).tolist()
  [1.5, 2.0]
  >>> central(5.0, 0.5).fact(fm.Noises).mechanism
  Gaussian(noise_multiplier=0.5)

  Args:
    l2_clip_norm: C, bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: standard deviation of the noise over the bound; 0 only clips and claims no
      privacy.
    mechanism: noise scaled to the L2 norm: 'gaussian' or 'package.module:Class'. With noise for
      integers, such as 'discrete_gaussian', updates are on an integer grid, summed as int32.
    per_layer: clip each of L arrays to C / sqrt(L) instead of all together; the bound stays C.
    levels: steps of the grid in the clip norm, 1 to 16384; only for noise for integers.
    dimension: values of an update, for noise that needs it; an experiment fills it in.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  validate.non_negative(noise_multiplier=noise_multiplier)
  kind = mechanisms.find(mechanism, 'l2', fresh=True)
  validate.integer(at_most=2**14, levels=levels)
  clip = kit.chosen_clip(per_layer)
  if dimension is not None:
    validate.integer(dimension=dimension)
  made = mechanisms.make(kind, noise_multiplier, dimension=dimension)
  if kind.integers:
    return _discrete(l2_clip_norm, made, clip, levels)
  return kit.layer('central', clip, l2_clip_norm, kit.within(float(l2_clip_norm)), made)


def _discrete(clip_norm: float, made: Mechanism | None, clip: kit.Clip, levels: int) -> Layer:
  """Returns the layer whose updates are int32 on a grid of `levels` steps in the clip norm."""
  step = clip_norm / levels
  # In steps of the grid, as is the noise; it holds after rounding.
  grid = kit.within(float(levels))
  if made is not None:
    made.check(grid.of(None, Bound()), ())

  def client(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    del ctx
    message, _, metrics = kit.clipped(clip, message, clip_norm)
    # As an integer, a value that is not finite would be arbitrary. The engine has noted the client.
    points, ok = kit.on_grid(message.update, clip_norm, levels)
    update = tree.keep(ok, points)
    return message._replace(update=update), state, metrics

  def server(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    total = message.update
    if made is not None:
      drawn, state = made.draw(ctx.key, total, ctx.bound, state)
      total = tree.add(total, drawn)
    floats = tree.scale(jnp.float32(step), tree.floats(total))
    return kit.restored(ctx, message, floats), state, {}

  room = Integers(_WORD, (2 ** (_WORD - 1) - 1) // levels)
  noisy = Stage(server) if made is None else kit.stated(server, made)
  return Layer('central', client=Stage(client, facts=(grid, room)), server=noisy)
