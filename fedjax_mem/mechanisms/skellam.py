"""Skellam noise on integers: a sum of Skellam variables is Skellam noise again.

Reference: Agarwal, Kairouz, Liu (2021), arXiv 2110.04995, Corollary 4.1, which holds for integer
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

  The dimension must be given: with it, the L2 bound gives a bound of the L1 norm.

  Ten clients add a share each, of a tenth of the variance:

  >>> mechanism = Skellam(2.0, shares=10, dimension=100_000)
  >>> share, _ = mechanism.draw(jax.random.key(0), jnp.zeros(100_000), Bound(l2=30.0), ())
  >>> share.dtype.name, round(float(share.std()))  # 2 x 30 / sqrt(10)
  ('int32', 19)
  """

  orders = (*range(2, 64), 128, 256, 512, 1024)

  def __post_init__(self) -> None:
    """Raises `ValueError` for numbers that are out of range, or missing."""
    super().__post_init__()
    if self.dimension is None:
      raise ValueError('dimension must be given for Skellam noise, got None.')

  def concentrated(self, moves: int, bound: Bound | None = None) -> tuple[float, float]:
    """Returns (rho, xi): the Renyi divergence of an integer order a is at most xi + rho a.

    Args:
      moves: how far the sum moves, in bounds: 1 or 2.
      bound: the bound of one contribution, on the integer grid.
    """
    base = _base.l2_of(bound)
    # The L1 norm of a vector of integers is at most sqrt(dimension) x its L2 norm, and at most the
    # square of its L2 norm; `bound` may know better.
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
    """Returns the table from which noise of scale `sigma`, in steps of the grid, is drawn."""
    from fedjax_mem.kernels.random import noise

    return noise.skellam_table(sigma)
