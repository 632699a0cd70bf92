"""Local differential privacy by integer noise on a grid."""

import jax
import jax.numpy as jnp

from fedjax_mem import mechanisms
from fedjax_mem.core import (
  Bound,
  Layer,
  Mechanism,
  Tree,
  tree,
  validate,
)
from fedjax_mem.stages.privacy import _base as kit
from fedjax_mem.stages.privacy._local import layers


def local_discrete(
  l2_clip_norm: float,
  noise_multiplier: float,
  *,
  mechanism: str | type[Mechanism] = 'discrete_gaussian',
  levels: int = 1024,
) -> tuple[Layer, ...]:
  """Returns the layers in which each client rounds its update to a grid and adds integer noise.

  The update is clipped in L2, rounded to a grid of `levels` steps in the clip norm, and sent as
  floats after the noise is added. A float32 holds every such integer.

  >>> fm.apply([[6.0, 8.0], [0.0, 0.0]], local_discrete(5.0, 1e-3)).update.round(1).tolist()
  [1.5, 2.0]

  Reference: Canonne, Kamath, Steinke (2020), arXiv 2004.00010.

  Args:
    l2_clip_norm: bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: parameter sigma of each client's noise over the bound; 0 only clips.
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
    own = kit.within(float(l2_clip_norm))
    return layers('local_discrete', kit.clip_l2, l2_clip_norm, own, None)
  grid = kit.within(float(levels))
  made.check(grid.of(None, Bound()), ())

  def points(update: Tree) -> Tree:
    whole, ok = kit.on_grid(update, l2_clip_norm, levels)
    # An update that is not finite must stay so: the engine then leaves the client out.
    return jax.tree.map(lambda x: jnp.where(ok, x, jnp.float32(jnp.nan)), tree.floats(whole))

  def noisy(drawn: Tree, update: Tree) -> Tree:
    fine = tree.finite(update)
    whole = jax.tree.map(lambda x: jnp.where(fine, x, 0).astype(jnp.int32), update)
    sent = tree.scale(jnp.float32(l2_clip_norm / levels), tree.floats(tree.add(whole, drawn)))
    return jax.tree.map(lambda x: jnp.where(fine, x, jnp.float32(jnp.nan)), sent)

  return layers('local_discrete', kit.clip_l2, l2_clip_norm, grid, made, points, noisy)
