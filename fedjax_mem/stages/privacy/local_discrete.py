"""Local differential privacy by integer noise on a grid."""

import jax
import jax.numpy as jnp

from fedjax_mem import mechanisms
from fedjax_mem.core import (
  Bound,
  Layer,
  Mechanism,
  tree,
  validate,
)
from fedjax_mem.stages.privacy import _clipping as clipping
from fedjax_mem.stages.privacy import _noising as noising
from fedjax_mem.stages.privacy._local import Tree, layers


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
  validate.non_negative(noise_multiplier=noise_multiplier)
  validate.integer(at_most=2**14, levels=levels)
  kind = mechanisms.find(mechanism, 'l2', integers=True, fresh=True)
  made = mechanisms.make(kind, noise_multiplier)
  if made is None:
    own = noising.within(float(l2_clip_norm))
    return layers('local_discrete', clipping.l2, l2_clip_norm, own, None)
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

  return layers('local_discrete', clipping.l2, l2_clip_norm, grid, made, points, noisy)
