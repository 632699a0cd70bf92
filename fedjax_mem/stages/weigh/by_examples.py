"""Clients count in proportion to their examples."""

from fedjax_mem.core import Bound, Layer
from fedjax_mem.stages.weigh.weighing import weighing


def by_examples() -> Layer:
  """Returns the layer that averages by examples, sum n_k d_k / sum n_k over those that arrived.

  The number of examples is private and unbounded, so no sensitivity survives it.

  Reference: McMahan et al. (2017), arXiv 1602.05629, Algorithm 1.
  """
  return weighing(lambda n: n, 'examples', lambda bound: Bound())
