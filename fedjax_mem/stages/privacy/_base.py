"""What the privacy layers share: a clip on the client, noise on the sum, and the bound between.

Guarantee of central noise: adding or removing one client moves the sum by at most the clip norm in
L2 (L1 under Laplace noise). Noise of `noise_multiplier` times that bound is added to the sum, once
a round, before the division and before the server optimizer. Everything after is post-processing.
The guarantee needs equal or capped weights (at most 1), a fixed divisor, and a cohort drawn without
looking at data. The plan checks these; the accountant computes epsilon.

The scale of the noise is not an argument. The client side states the bound of a message, the layers
after it state how they change it, the round composes these, and the noise reads the result,
`ctx.bound`.

The arithmetic is float32 for all dtypes: rounding to bfloat16 or float16 after the clip could leave
the ball by up to 0.4%. The radius is multiplied by 1 - `clip.MARGIN`, more than the rounding error
of float32, so the stated bound holds exactly.

Metrics come from updates without noise; only those that are `Covered` are covered by epsilon.
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
  Layer,
  Mean,
  Mechanism,
  Message,
  Metrics,
  Noises,
  Stage,
  Tree,
  tree,
  validate,
)
from fedjax_mem.kernels.norms import clip as kernel

# (update of float32 arrays, bound) -> (clipped update, its norm before, fraction clipped in [0, 1])
Clip = Callable[[Tree, Any], tuple[Tree, jax.Array, jax.Array]]


def clip_l2(update: Tree, bound: Any) -> tuple[Tree, jax.Array, jax.Array]:
  """Returns the update clipped in L2 over all arrays together, as a `Clip`."""
  bound = jnp.asarray(bound, jnp.float32)
  clipped, norm = kernel.clip_by_global_norm(update, bound * (1 - kernel.MARGIN))
  return clipped, norm, (norm > bound).astype(jnp.float32)


def clip_l2_per_layer(update: Tree, bound: Any) -> tuple[Tree, jax.Array, jax.Array]:
  """Returns the update with each of L arrays clipped to bound / sqrt(L), as a `Clip`.

  The L2 norm over all arrays together is then at most the bound.

  Reference: McMahan et al. (2018), arXiv 1710.06963, section 2.2 (per-layer clipping).
  """
  leaves, structure = jax.tree.flatten(update)
  each = jnp.asarray(bound, jnp.float32) / jnp.sqrt(jnp.float32(max(1, len(leaves))))
  parts = [clip_l2(x, each) for x in leaves]
  norm = tree.norm([p[1] for p in parts])
  clipped = sum((p[2] for p in parts), jnp.float32(0)) / max(1, len(leaves))
  return jax.tree.unflatten(structure, [p[0] for p in parts]), norm, clipped


def clip_l1(update: Tree, bound: Any) -> tuple[Tree, jax.Array, jax.Array]:
  """Returns the update clipped in L1 over all arrays together, as a `Clip`.

  The result is not finite if a value is not finite.
  """
  bound = jnp.asarray(bound, jnp.float32)
  largest = jnp.float32(0)
  for x in jax.tree.leaves(update):
    if x.size:
      largest = jnp.maximum(largest, jnp.max(jnp.abs(x)))
  # Scaled to magnitudes of at most 1, a sum cannot overflow; a power of two scales exactly.
  ordinary = (largest > 0) & jnp.isfinite(largest)
  exponent = jnp.where(ordinary, jnp.clip(jnp.frexp(largest)[1], -126, 126), 0)
  scale = jnp.ldexp(jnp.float32(1), -exponent)
  scaled = sum((jnp.sum(jnp.abs(x * scale)) for x in jax.tree.leaves(update)), jnp.float32(0))
  norm = scaled / scale
  radius = bound * (1 - kernel.MARGIN)
  inside = norm <= radius
  factor = jnp.where(jnp.isfinite(scaled), radius / scaled, jnp.float32(jnp.nan))
  clipped = jax.tree.map(lambda x: jnp.where(inside, x, x * scale * factor), update)
  return clipped, norm, (norm > bound).astype(jnp.float32)


def chosen_clip(per_layer: bool) -> Clip:
  """Returns the L2 clip: of each array by itself if `per_layer`, else of the whole update."""
  validate.boolean(per_layer=per_layer)
  return clip_l2_per_layer if per_layer else clip_l2


def noise_of_floats(
  mechanism: str | type[Mechanism], norm: str, multiplier: float
) -> Mechanism | None:
  """Returns the noise for floats, given by name or class; None if the multiplier is 0."""
  validate.non_negative(noise_multiplier=multiplier)
  return mechanisms.make(mechanisms.find(mechanism, norm, integers=False, fresh=True), multiplier)


def clipped(clip: Clip, message: Message, bound: Any) -> tuple[Message, jax.Array, Metrics]:
  """Returns (the clipped message, in float32; its norm before; metrics).

  A client of weight 0 takes no part and enters no metric. The metrics come from the clients' own
  updates without noise: epsilon does not cover them.
  """
  update, norm, fraction = clip(tree.floats(message.update), bound)
  on = (message.weight > 0).astype(jnp.float32)
  counted = on * jnp.isfinite(norm).astype(jnp.float32)
  metrics = {
    'clipped': Mean(on * fraction, on),
    'norm': Mean(jnp.where(counted > 0, norm, jnp.float32(0)), counted),
  }
  return message._replace(update=update), norm, metrics


def restored(ctx: Context, message: Message, update: Tree) -> Message:
  """Returns the message with `update` in the dtypes that the client side received."""
  cast = lambda x, wanted: x.astype(wanted.dtype)
  return message._replace(update=jax.tree.map(cast, update, ctx.spec.update))


def on_grid(update: Tree, clip_norm: float, levels: int) -> tuple[Tree, jax.Array]:
  """Returns (the update as int32 points of a grid, whether all its values are finite).

  The clip norm is `levels` steps of the grid. Values are rounded to the nearest point, or all
  towards zero if the nearest points leave the ball. So the L2 norm on the grid is at most `levels`,
  rounding included; it is computed in exact integers.

  Args:
    update: float32 arrays of an L2 norm of at most `clip_norm`.
    clip_norm: bound of the L2 norm.
    levels: steps of the grid in the clip norm, at most 16384.
  """
  scaled = tree.scale(jnp.float32(1 / (clip_norm / levels)), update)
  nearest = jax.tree.map(lambda x: jnp.round(x).astype(jnp.int32), scaled)
  squares = [jnp.sum(x * x, dtype=jnp.int32) for x in jax.tree.leaves(nearest)]
  inside = sum(squares, jnp.int32(0)) <= levels**2
  # Rounding towards zero enlarges no value, hence no norm.
  inward = jax.tree.map(lambda x: jnp.trunc(x).astype(jnp.int32), scaled)
  return tree.select(inside, nearest, inward), tree.finite(scaled)


def added(ctx: Context, message: Message, noise: Tree) -> Message:
  """Returns the sum with noise added in float32, in the dtypes that the client side received."""
  return restored(ctx, message, tree.add(tree.floats(message.update), noise))


def release(made: Mechanism) -> Stage:
  """Returns the server side that adds a mechanism's noise to a sum of floats."""

  def apply(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    drawn, state = made.draw(ctx.key, message.update, ctx.bound, state)
    return added(ctx, message, drawn), state, {}

  return stated(apply, made)


def stated(apply: Callable[..., Any], made: Mechanism) -> Stage:
  """Returns the server side `apply`, which adds a mechanism's noise and keeps its state."""
  return Stage(apply, lambda ctx: made.init(ctx.spec.update), (Noises(made),))


def quiet() -> Stage:
  """Returns the server side of a layer that only clips."""
  return Stage(lambda ctx, m, state: (restored(ctx, m, m.update), state, {}))


def within(l2: float) -> Bounds:
  """Returns the fact that an update's L2 norm is at most `l2`, whatever the bound before."""
  return Bounds(lambda ctx, bound: Bound(l2=l2, linf=l2))


def within_l1(l1: float) -> Bounds:
  """Returns the fact that an update's L1 norm is at most `l1`, whatever the bound before."""
  return Bounds(lambda ctx, bound: Bound(l1, l1, l1))


def layer(name: str, clip: Clip, clip_norm: float, own: Bounds, made: Mechanism | None) -> Layer:
  """Returns the layer that clips on the client and adds noise on the server.

  Args:
    name: name of the layer.
    clip: brings an update into the ball of `clip_norm`.
    clip_norm: radius of the ball, > 0.
    own: what the clip promises.
    made: the noise; None: the layer only clips.
  """

  def client(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
    del ctx
    message, _, metrics = clipped(clip, message, clip_norm)
    return message, state, metrics

  server = release(made) if made else quiet()
  return Layer(name, client=Stage(client, facts=(own,)), server=server)


def clip_and_release(name: str, l2_clip_norm: float, made: Mechanism) -> Layer:
  """Returns the layer that clips each whole update in L2, and adds the noise to the sum."""
  return layer(name, clip_l2, l2_clip_norm, within(float(l2_clip_norm)), made)
