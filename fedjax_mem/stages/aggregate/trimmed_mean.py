"""The mean of every coordinate without its smallest and largest values.

Robust to f hostile clients of C if C > 2f: every coordinate of the result lies between values of
honest clients. On several devices the coordinates are divided among them.

Reference: Yin et al. (2018), arXiv 1803.01498, Definition 2.
"""

import jax

from fedjax_mem.core import Context, Layer, Metrics, Rule
from fedjax_mem.kernels.order import columns
from fedjax_mem.stages.aggregate import _base as kit


def trimmed_mean(byzantine: int) -> Layer:
  """Returns the layer that averages every coordinate without its f smallest and f largest values.

  >>> fm.apply([[1.0], [2.0], [3.0], [60.0]], trimmed_mean(byzantine=1)).update.tolist()
  [2.5]

  Args:
    byzantine: f, byzantine clients in a cohort, >= 0; it needs C > 2f clients.

  Raises:
    ValueError: f is not an integer >= 0.
  """
  f = kit.check_byzantine(byzantine)

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del ctx, weights
    return columns.trimmed_mean(x, on, f), {}

  needs = Rule(2 * f + 1, f'C >= 2f + 1 with f = {f}', by_coordinate=True)
  return kit.rule('trimmed_mean', compute, needs)
