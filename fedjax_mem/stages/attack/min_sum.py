"""Min-sum: the largest step within the largest sum of distances of an honest update."""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, Tree, validate
from fedjax_mem.stages.attack import _base as base
from fedjax_mem.stages.attack._base import Attack, Seen
from fedjax_mem.stages.attack._farthest import DIRECTIONS, geometry, moved, pairs, root


def min_sum(
  attackers: float,
  direction: str = 'std',
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer of min-sum: mean + step * direction, within the sums of squared distances.

  As `min_max`, but the step is the largest one with which the sum of squared distances to the
  honest updates is at most the largest such sum of an honest update.

  >>> fm.apply([[9.0], [2.0], [5.0]], min_sum(1)).update.round(3).tolist()
  [3.0]

  Client 0 sends 2, whose squared distances to 2 and 5 sum up to 9, as those of 5 do.

  Args:
    attackers: number of hostile clients, an integer >= 0, or their share of the population, a float
      in [0, 1), rounded down.
    direction: 'std' (minus the standard deviations), 'unit' (minus the mean, of norm 1) or 'sign'
      (minus the signs of the mean).
    num_clients: N, needed for a share or a seed.
    seed: draws which clients are hostile; None: those with the lowest ids.

  Reference: Shejwalkar and Houmansadr (2021), Manipulating the Byzantine, NDSS, equation 9.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.one_of(DIRECTIONS, direction=direction)

  def forge(seen: Seen) -> Tree:
    away, toward, squared, distances = geometry(seen, direction)
    limit = jnp.where(pairs(seen), distances, 0).sum(1).max()

    def total(values: jax.Array) -> jax.Array:
      return jnp.where(seen.good, values, 0).sum()

    count = seen.good.sum().astype(jnp.float32)
    step = root(count * squared, total(toward), total(away) - limit)
    return moved(seen, direction, step)

  return base.layer('min_sum', Attack(base.hostile(attackers, num_clients, seed), forge))
