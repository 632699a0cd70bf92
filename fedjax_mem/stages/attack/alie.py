"""A little is enough: a small step away from the honest mean, in every coordinate.

The hostile clients know all honest updates and all send the same.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, Tree, tree, validate
from fedjax_mem.stages.attack import _base as base
from fedjax_mem.stages.attack._base import Attack, Seen


def alie(
  attackers: float, z: float | None = None, num_clients: int | None = None, seed: int | None = None
) -> Layer:
  """Returns the layer of "a little is enough": mean - z deviations, coordinate by coordinate.

  >>> fm.apply([[9.0], [2.0], [4.0]], alie(1, z=3.0)).update.round(3).tolist()
  [2.0]

  Client 0 sends 3 - 3 * 1 = 0.

  Args:
    attackers: number of hostile clients, an integer >= 0, or their share of the population, a float
      in [0, 1), rounded down.
    z: > 0; None: the largest z with which s honest clients are expected further from the mean than
      the hostile ones: Phi(z) = (n - m - s) / (n - m), with m hostile of n clients and
      s = n // 2 + 1 - m, the number of honest clients missing to a majority.
    num_clients: N, needed for a share or a seed.
    seed: draws which clients are hostile; None: those with the lowest ids.

  Reference: Baruch et al. (2019), arXiv 1902.06156, Algorithm 3. Mean and deviation (divisor n) are
  those of the honest clients of the cohort.

  Raises:
    ValueError: an argument is out of range.
  """
  if z is not None:
    validate.positive(z=z)

  def forge(seen: Seen) -> Tree:
    mean = seen.mean()
    by = _largest_z(seen) if z is None else jnp.float32(z)
    return tree.sub(mean, tree.scale(by, seen.deviation(mean)))

  return base.layer('alie', Attack(base.hostile(attackers, num_clients, seed), forge))


def _largest_z(seen: Seen) -> jax.Array:
  """Returns the z of Baruch et al. (2019), Algorithm 3."""
  bad = seen.bad.sum().astype(jnp.float32)
  honest = jnp.maximum(seen.good.sum(), 1).astype(jnp.float32)
  needed = jnp.floor((honest + bad) / 2 + 1) - bad
  # Clipped, since z is infinite at the ends: with a hostile majority s <= 0, and any z does.
  return jax.scipy.special.ndtri(jnp.clip((honest - needed) / honest, 1e-6, 1 - 1e-6))
