"""Clients count in proportion to their examples."""

from fedjax_mem.core import Layer
from fedjax_mem.stages.weigh._base import weighing


def by_examples(divisor: float | None = None) -> Layer:
  """Returns the layer that averages by examples, sum n_k d_k / sum n_k over those that arrived.

  The number of examples n_k is private and unbounded, so a weighted message has no bound.

  >>> fm.apply([[1.0], [5.0]], by_examples(), weights=[3, 1]).update.round(3).tolist()
  [2.0]

  Reference: McMahan et al. (2017), arXiv 1602.05629, Algorithm 1.

  Args:
    divisor: None to divide by the examples that arrived, or a fixed number > 0: all examples of the
      population, if inclusion probabilities are known (Horvitz and Thompson 1952).

  Raises:
    ValueError: the divisor is not > 0.
  """
  return weighing(lambda n: n, None, divisor)
