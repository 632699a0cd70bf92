"""Skellam noise on integers: a sum of shares is Skellam again.

Reference: Agarwal, Kairouz, Liu (2021), arXiv 2110.04995, Corollary 4.1, which holds for whole
orders.
"""

import dataclasses
import math
from typing import Any

from fedjax_mem.core.bound import Bound
from fedjax_mem.mechanisms import _base


@dataclasses.dataclass(frozen=True)
class Skellam(_base.OnIntegers):
  """Skellam noise; `noise_multiplier` is the standard deviation of the sum over the L2 bound.

  With the dimension, which must be given, the L2 bound bounds the L1 norm.
  """

  orders = (*range(2, 64), 128, 256, 512, 1024)

  def __post_init__(self) -> None:
    """Raises `ValueError` for numbers that are out of range, or missing."""
    super().__post_init__()
    if self.dimension is None:
      raise ValueError('dimension must be given for Skellam noise, got None.')

  def concentrated(self, moves: int, bound: Bound | None = None) -> tuple[float, float]:
    """Returns (rho, xi): the Renyi divergence of a whole order a is at most xi + rho a.

    Args:
      moves: how far the sum moves, in bounds: 1 or 2.
      bound: on the integer grid.
    """
    base = _base.l2_of(bound)
    # Of any vector of integers; or what is known besides.
    one = min(math.sqrt(self.dimension or 1) * base, base**2, bound.l1 if bound else math.inf)
    variance = (self.noise_multiplier * base) ** 2
    l1, l2 = moves * one, moves * base
    rho = l2**2 / (2 * variance)
    return _base.lowest(
      [
        (rho * (1 + 1 / variance), max(0.0, (6 * l1 - l2**2) / (4 * variance**2))),
        (rho, 3 * l1 / (2 * variance)),
      ]
    )

  def table_of(self, sigma: float) -> Any:
    """Returns the table of the noise of a scale in steps of the grid."""
    from fedjax_mem.kernels.random import noise

    return noise.skellam_table(sigma)
