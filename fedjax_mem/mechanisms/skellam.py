"""Skellam noise on integers: a sum of shares is Skellam again.

Reference: Agarwal, Kairouz, Liu (2021), arXiv 2110.04995, Corollary 4.1, which holds for whole
orders.
"""

import dataclasses
import math
from typing import Any

from fedjax_mem.core.bound import Bound
from fedjax_mem.core.mechanism import Mechanism
from fedjax_mem.mechanisms import _base


@dataclasses.dataclass(frozen=True)
class Skellam(Mechanism):
  """Skellam noise; `noise_multiplier` is the standard deviation of the sum over the L2 bound.

  Attributes:
    shares: None: drawn once, on the server; or the fewest clients that bring it, each a share of
      the variance of the sum.
    dimension: number of coordinates; with the L2 bound it bounds the L1 norm.
  """

  integers = True
  orders = (*range(2, 64), 128, 256, 512, 1024)
  shares: int | None = None
  dimension: int | None = None

  def __post_init__(self):
    """Raises `ValueError` for numbers that are out of range, or missing."""
    super().__post_init__()
    _base.check_shares(self.shares, self.dimension)
    if self.dimension is None:
      raise ValueError('dimension must be given for Skellam noise, got None.')

  @property
  def carried(self) -> bool:
    """Whether clients bring the noise."""
    return self.shares is not None

  def check(self, bound: Bound) -> None:
    """Raises `ValueError` for a bound that makes too large a table."""
    self._table(bound)

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

  def once(self, moves: int, bound: Bound | None) -> Any:
    """Returns the event of one round in which a neighbour moves the sum by `moves` bounds."""
    return _base.concentrated(self.concentrated(moves, bound))

  def _table(self, bound: Bound) -> Any:
    from fedjax_mem.kernels import noise

    share = math.sqrt(self.shares or 1)
    return noise.skellam_table(self.noise_multiplier * _base.l2_of(bound) / share)

  def draw(self, key: Any, like: Any, bound: Bound, state: Any) -> tuple[Any, Any]:
    """Returns (int32 noise of the shapes of `like`, state); of one share, if there are any."""
    from fedjax_mem.kernels import noise

    return noise.tabled(key, like, self._table(bound)), state
