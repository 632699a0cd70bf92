"""Multi-Krum: the average of the clients that are nearest to the others.

Reference: Blanchard et al. (2017), Machine learning with adversaries, section 6.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Metrics, Rule, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.kernels.order import columns
from fedjax_mem.stages.aggregate import _base as kit
from fedjax_mem.stages.aggregate._krum import scores


def multi_krum(byzantine: int, selected: int | None = None) -> Layer:
  """Returns the layer that averages the clients with the lowest scores.

  The scores are Krum's. Clients that are tied for the last places share them equally.

  >>> updates = [[1.0], [2.0], [3.0], [4.0], [60.0]]
  >>> fm.apply(updates, multi_krum(byzantine=1)).update.round(3).tolist()
  [2.5]

  Args:
    byzantine: f, byzantine clients in a cohort, >= 0; it needs C >= 2f + 3 clients.
    selected: m, clients that are averaged, >= 1 (all clients if there are fewer); None: n - f.

  Raises:
    ValueError: f is not an integer >= 0, or m not one >= 1.
  """
  f = kit.check_byzantine(byzantine)
  if selected is not None:
    validate.integer(selected=selected)

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del ctx, weights
    distances = gram.squared_distances(x, on)
    count = on.sum(dtype=jnp.int32)
    taken = jnp.maximum(count - f, 1) if selected is None else jnp.minimum(selected, count)
    shares = columns.smallest(scores(distances, on, f)[:, None], on, taken)[:, 0]
    return gram.combine(shares / jnp.maximum(taken, 1).astype(jnp.float32), x), {}

  return kit.rule('multi_krum', compute, Rule(2 * f + 3, f'C >= 2f + 3 with f = {f}'))
