"""Min-sum: as far from the honest updates, summed, as no honest update is from the others."""

import jax.numpy as jnp

from fedjax_mem.core import Layer, validate
from fedjax_mem.stages.attack import _base as h
from fedjax_mem.stages.attack._base import Attack, Seen
from fedjax_mem.stages.attack._farthest import DIRECTIONS, geometry, moved, pairs, root


def min_sum(
  attackers: float,
  direction: str = 'std',
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer whose clients go as far as no honest update is from all others together.

  As `min_max`, with the sum of squared distances to the honest updates.

  Args:
    attackers: how many, or their share: see `hostile`.
    direction: 'std' (minus the deviations), 'unit' (against the mean) or 'sign' (of the same).
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.

  Reference: Shejwalkar and Houmansadr (2021), Manipulating the Byzantine, NDSS, equation 9.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.one_of(DIRECTIONS, direction=direction)

  def lie(seen: Seen):
    away, toward, squared, distances = geometry(seen, direction)
    limit = jnp.where(pairs(seen), distances, 0).sum(1).max()
    total = lambda values: jnp.where(seen.good, values, 0).sum()
    count = seen.good.sum().astype(jnp.float32)
    step = root(count * squared, total(toward), total(away) - limit)
    return moved(seen, direction, step)

  return h.layer('min_sum', Attack(h.hostile(attackers, num_clients, seed), lie))
