"""Bulyan: selects clients by Krum, then takes a trimmed mean around the median of each coordinate.

Reference: El Mhamdi et al. (2018), arXiv 1802.07927, section 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Metrics, Rule
from fedjax_mem.kernels.norms import gram
from fedjax_mem.kernels.order import columns
from fedjax_mem.stages.aggregate import _base as kit
from fedjax_mem.stages.aggregate._krum import lowest, scores


def bulyan(byzantine: int) -> Layer:
  """Returns the layer that selects clients by Krum, then averages near the median.

  It selects n - 2f clients, one after another, by scores among those that are left. In every
  coordinate it averages the n - 4f of their values that are nearest to their median. Clients that
  are tied for the lowest score are selected together; where there are not places enough for them,
  each place is taken by their mean.

  >>> updates = [[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [60.0]]
  >>> fm.apply(updates, bulyan(byzantine=1)).update.round(3).tolist()
  [3.5]

  Args:
    byzantine: f, byzantine clients in a cohort, >= 0; it needs C >= 4f + 3 clients.

  Raises:
    ValueError: f is not an integer >= 0.
  """
  f = kit.check_byzantine(byzantine)

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del ctx, weights
    distances = gram.squared_distances(x, on)
    count = on.sum(dtype=jnp.int32)

    def choose(now: _Choice) -> _Choice:
      best = lowest(scores(distances, now.left, f), now.left)
      size = best.sum(dtype=jnp.int32)
      fits = size <= now.places
      places = jnp.where(fits, now.places - size, 0)
      # Of those that do not all fit, as many rows as there are places hold the mean of them.
      held = best & (fits | (jnp.cumsum(best) <= now.places))
      return _Choice(now.left & ~best, now.taken | held, best & ~fits, places)

    nobody = jnp.zeros_like(on)
    begin = _Choice(on, nobody, nobody, jnp.minimum(jnp.maximum(count - 2 * f, 0), count))
    end = jax.lax.while_loop(lambda now: now.places > 0, choose, begin)
    return columns.mean_near(x, end.taken, jnp.maximum(count - 4 * f, 1), end.tied), {}

  return kit.rule('bulyan', compute, Rule(4 * f + 3, f'C >= 4f + 3 with f = {f}'))


class _Choice(NamedTuple):
  """Where the selection stands.

  Attributes:
    left: [C] booleans, who is not selected yet.
    taken: [C] booleans, who is selected.
    tied: [C] booleans, who shared the last places, in rows that are to be replaced by their mean.
    places: int32, how many are still to be selected.
  """

  left: jax.Array
  taken: jax.Array
  tied: jax.Array
  places: jax.Array
