"""Min-max: as far from the honest mean as no honest update is from another."""

import jax.numpy as jnp

from fedjax_mem.core import Layer, validate
from fedjax_mem.stages.attack import _base as h
from fedjax_mem.stages.attack._base import Attack, Seen
from fedjax_mem.stages.attack._farthest import DIRECTIONS, geometry, moved, pairs, root


def min_max(
  attackers: float,
  direction: str = 'std',
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer whose clients go as far as no honest update is from another.

  The step is the largest for which the greatest distance to an honest update is at most the
  greatest between two of them; it is the root of a quadratic, not searched for.

  Args:
    attackers: how many, or their share: see `hostile`.
    direction: 'std' (minus the deviations), 'unit' (against the mean) or 'sign' (of the same).
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.

  Reference: Shejwalkar and Houmansadr (2021), Manipulating the Byzantine, NDSS, equation 8.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.one_of(DIRECTIONS, direction=direction)

  def lie(seen: Seen):
    away, toward, squared, distances = geometry(seen, direction)
    limit = jnp.where(pairs(seen), distances, 0).max()
    roots = root(squared, toward, away - limit)
    step = jnp.where(seen.good, roots, jnp.inf).min()
    return moved(seen, direction, step)

  return h.layer('min_max', Attack(h.hostile(attackers, num_clients, seed), lie))
