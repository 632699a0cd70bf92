"""The median of every coordinate.

Robust to f hostile clients of C if C > 2f: every coordinate of the result lies between values of
honest clients. On several devices the coordinates are divided among them.

Reference: Yin et al. (2018), arXiv 1803.01498, Definition 1.
"""

from fedjax_mem.core import Layer, Rule
from fedjax_mem.kernels.order import columns
from fedjax_mem.stages.aggregate import _base as rule


def median() -> Layer:
  """Returns the layer that takes the median of every coordinate.

  Of an even number of clients it is the mean of the two values in the middle.
  """

  def compute(ctx, x, on, weights):
    del ctx, weights
    return columns.median(x, on), {}

  return rule.layer('median', compute, Rule(by_coordinate=True))
