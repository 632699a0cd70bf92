"""The median of every coordinate.

Robust to f hostile clients of C if C > 2f: every coordinate of the result lies between values of
honest clients. On several devices the coordinates are divided among them.

Reference: Yin et al. (2018), arXiv 1803.01498, Definition 1.
"""

import jax

from fedjax_mem.core import Context, Layer, Metrics, Rule
from fedjax_mem.kernels.order import columns
from fedjax_mem.stages.aggregate import _base as kit


def median() -> Layer:
  """Returns the layer that takes the median of every coordinate.

  Of an even number of clients it is the mean of the two values in the middle.

  >>> fm.apply([[1.0], [2.0], [60.0]], median()).update.tolist()
  [2.0]
  """

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del ctx, weights
    return columns.median(x, on), {}

  return kit.rule('median', compute, Rule(by_coordinate=True))
