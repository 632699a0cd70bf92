"""Discrete Gaussian noise on integers, drawn once by the server or in shares by the clients.

Of a sum of shares, which is not quite a discrete Gaussian, that of one share alone always holds:
the others are post-processing.

References: Canonne, Kamath, Steinke (2020), arXiv 2004.00010, Theorem 4 and its multivariate form;
sums: Kairouz, Liu, Steinke (2021), arXiv 2102.06387, Proposition 14.
"""

import dataclasses
import math
from typing import Any

from fedjax_mem.core.bound import Bound
from fedjax_mem.mechanisms import _base

# In steps of the grid: from there on sums are accounted as such.
_LEAST_VARIANCE = 0.25


@dataclasses.dataclass(frozen=True)
class DiscreteGaussian(_base.OnIntegers):
  """Discrete Gaussian noise; `noise_multiplier` is its parameter sigma over the L2 bound."""

  def __post_init__(self) -> None:
    """Raises `ValueError` for numbers that are out of range, or missing."""
    super().__post_init__()
    if (self.shares or 1) > 1 and self.dimension is None:
      raise ValueError(
        f'dimension must be given for discrete Gaussian noise of {self.shares} shares, got None.'
      )

  def concentrated(self, moves: int, bound: Bound | None = None) -> tuple[float, float]:
    """Returns (rho, xi): the Renyi divergence of order a is at most xi + rho a.

    Args:
      moves: how far the sum moves, in bounds: 1 or 2.
      bound: on the integer grid; needed for several shares.
    """
    ratio, shares = moves / self.noise_multiplier, self.shares or 1
    tau, dimension = self._penalty(bound), self.dimension or 1
    lines = [(shares * ratio**2 / 2, 0.0)]
    if tau is not None:
      lines += [
        (ratio**2 / 2, tau * dimension),
        ((ratio + math.sqrt(dimension) * tau) ** 2 / 2, 0.0),
      ]
    return _base.lowest(lines)

  def _penalty(self, bound: Bound | None) -> float | None:
    """Returns tau: how far a sum of shares is from one discrete Gaussian (0 for a single share).

    None where a share is too small, sigma < 1/2 in steps of the grid, for what is proved.
    """
    shares = self.shares or 1
    if shares == 1:
      return 0.0
    variance = (self.noise_multiplier * _base.l2_of(bound)) ** 2 / shares
    if variance < _LEAST_VARIANCE:
      return None
    return 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, shares))

  def table_of(self, sigma: float) -> Any:
    """Returns the table of the noise of a scale in steps of the grid."""
    from fedjax_mem.kernels.random import noise

    return noise.discrete_table(sigma)
