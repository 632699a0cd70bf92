"""What the privacy layers share on the client: a whole update brought into a ball, in float32.

The arithmetic is float32 whatever the arrays are: rounding to bfloat16 or float16 after the clip
could leave the ball by up to 0.4%. The ball is taken smaller by `MARGIN`, which is more than what
float32 can be wrong by, so that the stated bound holds and not just nearly.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Mean, Message, tree, validate
from fedjax_mem.kernels.norms.clip import clip_by_global_norm

Tree = Any
# (update of float32 arrays, bound) -> (update in the ball, its norm before, fraction clipped)
Clip = Callable[[Tree, Any], tuple[Tree, jax.Array, jax.Array]]

MARGIN = 2.0**-20


def floats(update: Tree) -> Tree:
  """Returns the update in float32."""
  return jax.tree.map(lambda x: x.astype(jnp.float32), update)


def l2(update: Tree, bound: Any) -> tuple[Tree, jax.Array, jax.Array]:
  """Clips to an L2 norm over all arrays together."""
  bound = jnp.asarray(bound, jnp.float32)
  clipped, norm = clip_by_global_norm(update, bound * (1 - MARGIN))
  return clipped, norm, (norm > bound).astype(jnp.float32)


def l2_per_layer(update: Tree, bound: Any) -> tuple[Tree, jax.Array, jax.Array]:
  """Clips each of L arrays to bound / sqrt(L); together they are within the bound.

  Reference: McMahan et al. (2018), arXiv 1710.06963, section 2.2 (per-layer clipping).
  """
  leaves, structure = jax.tree.flatten(update)
  each = jnp.asarray(bound, jnp.float32) / jnp.sqrt(jnp.float32(max(1, len(leaves))))
  parts = [l2(x, each) for x in leaves]
  norm = tree.norm([p[1] for p in parts])
  clipped = sum((p[2] for p in parts), jnp.float32(0)) / max(1, len(leaves))
  return jax.tree.unflatten(structure, [p[0] for p in parts]), norm, clipped


def l1(update: Tree, bound: Any) -> tuple[Tree, jax.Array, jax.Array]:
  """Clips to an L1 norm over all arrays together; not finite where a value is not."""
  bound = jnp.asarray(bound, jnp.float32)
  largest = jnp.float32(0)
  for x in jax.tree.leaves(update):
    if x.size:
      largest = jnp.maximum(largest, jnp.max(jnp.abs(x)))
  # Sums of what is at most 1 cannot overflow; a power of two scales without rounding.
  ordinary = (largest > 0) & jnp.isfinite(largest)
  exponent = jnp.where(ordinary, jnp.clip(jnp.frexp(largest)[1], -126, 126), 0)
  scale = jnp.ldexp(jnp.float32(1), -exponent)
  scaled = sum((jnp.sum(jnp.abs(x * scale)) for x in jax.tree.leaves(update)), jnp.float32(0))
  norm = scaled / scale
  inside = norm <= bound * (1 - MARGIN)
  factor = jnp.where(jnp.isfinite(scaled), bound * (1 - MARGIN) / scaled, jnp.float32(jnp.nan))
  clipped = jax.tree.map(lambda x: jnp.where(inside, x, x * scale * factor), update)
  return clipped, norm, (norm > bound).astype(jnp.float32)


def choose(per_layer: bool) -> Clip:
  """Returns the L2 clip over the whole update, or layer by layer."""
  validate.boolean(per_layer=per_layer)
  return l2_per_layer if per_layer else l2


def clipped(clip: Clip, message: Message, bound: Any) -> tuple[Message, jax.Array, dict[str, Mean]]:
  """Returns (the message in the ball, in float32; its norm before; metrics).

  A client of weight 0 takes no part and enters no metric. The metrics come from the clients' own
  updates without noise, so epsilon does not cover them, and their names say so.
  """
  update, norm, fraction = clip(floats(message.update), bound)
  on = (message.weight > 0).astype(jnp.float32)
  counted = on * jnp.isfinite(norm).astype(jnp.float32)
  metrics = {
    'uncovered_clipped': Mean(on * fraction, on),
    'uncovered_norm': Mean(jnp.where(counted > 0, norm, jnp.float32(0)), counted),
  }
  return message._replace(update=update), norm, metrics


def restored(ctx: Context, message: Message, update: Tree) -> Message:
  """Returns the message with `update` in the dtypes that the client side received."""
  cast = lambda x, wanted: x.astype(wanted.dtype)
  return message._replace(update=jax.tree.map(cast, update, ctx.spec.update))


def on_grid(update: Tree, clip_norm: float, levels: int) -> tuple[Tree, jax.Array]:
  """Returns (int32 points of a grid of `levels` steps in the clip norm, whether all are finite).

  Rounded to the nearest point, or towards zero where that would leave the ball: the L2 norm on the
  grid is at most `levels`, rounding included, and is computed in exact integers.

  Args:
    update: float32 arrays of an L2 norm of at most `clip_norm`.
    clip_norm: bound of the L2 norm.
    levels: steps of the grid in it, at most 16384.
  """
  scaled = tree.scale(jnp.float32(1 / (clip_norm / levels)), update)
  nearest = jax.tree.map(lambda x: jnp.round(x).astype(jnp.int32), scaled)
  squares = [jnp.sum(x * x, dtype=jnp.int32) for x in jax.tree.leaves(nearest)]
  inside = sum(squares, jnp.int32(0)) <= levels**2
  inward = jax.tree.map(lambda x: jnp.trunc(x).astype(jnp.int32), scaled)
  return tree.select(inside, nearest, inward), tree.finite(scaled)
