"""Min-max: the largest step within the largest distance between two honest updates."""

import jax.numpy as jnp

from fedjax_mem.core import Layer, Tree, validate
from fedjax_mem.stages.attack import _base as base
from fedjax_mem.stages.attack._base import Attack, Seen
from fedjax_mem.stages.attack._farthest import DIRECTIONS, geometry, moved, pairs, root


def min_max(
  attackers: float,
  direction: str = 'std',
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer of min-max: mean + step * direction, within the spread of honest updates.

  The hostile clients know all honest updates and all send the same. The step is the largest one
  with which the largest distance to an honest update is at most the largest distance between two
  honest updates. It is the root of a quadratic, so no search is needed.

  >>> fm.apply([[9.0], [2.0], [5.0]], min_max(1)).update.round(3).tolist()
  [3.0]

  Client 0 sends 2: from there 5 is as far as the honest updates are from each other.

  Args:
    attackers: number of hostile clients, an integer >= 0, or their share of the population, a float
      in [0, 1), rounded down.
    direction: 'std' (minus the standard deviations), 'unit' (minus the mean, of norm 1) or 'sign'
      (minus the signs of the mean).
    num_clients: N, needed for a share or a seed.
    seed: draws which clients are hostile; None: those with the lowest ids.

  Reference: Shejwalkar and Houmansadr (2021), Manipulating the Byzantine, NDSS, equation 8.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.one_of(DIRECTIONS, direction=direction)

  def forge(seen: Seen) -> Tree:
    away, toward, squared, distances = geometry(seen, direction)
    limit = jnp.where(pairs(seen), distances, 0).max()
    roots = root(squared, toward, away - limit)
    step = jnp.where(seen.good, roots, jnp.inf).min()
    return moved(seen, direction, step)

  return base.layer('min_max', Attack(base.hostile(attackers, num_clients, seed), forge))
