"""Discrete Gaussian noise on integers, drawn once by the server or in shares by the clients.

A sum of shares is not quite a discrete Gaussian. The guarantee of a single share always holds, as
adding the other shares is post-processing; if the shares are large enough, a better one is proved.

References: Canonne, Kamath, Steinke (2020), arXiv 2004.00010, Theorem 4 and its multivariate form;
sums: Kairouz, Liu, Steinke (2021), arXiv 2102.06387, Proposition 14.
"""

import dataclasses
import math
from typing import Any

from fedjax_mem.core.bound import Bound
from fedjax_mem.mechanisms import _base

# Least variance of a share, in steps of the grid, from which the bound for sums is proved.
_LEAST_VARIANCE = 0.25


@dataclasses.dataclass(frozen=True)
class DiscreteGaussian(_base.OnIntegers):
  """Discrete Gaussian noise; `noise_multiplier` is its parameter sigma over the L2 bound.

  >>> mechanism = DiscreteGaussian(2.0)
  >>> noise, _ = mechanism.draw(jax.random.key(0), jnp.zeros(100_000), Bound(l2=3.0), ())
  >>> noise.dtype.name, round(float(noise.std()))
  ('int32', 6)
  """

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
      bound: the bound of one contribution, on the integer grid; needed for several shares.
    """
    ratio, shares = moves / self.noise_multiplier, self.shares or 1
    tau, dimension = self._penalty(bound), self.dimension or 1
    # That of a single share, whose variance is 1 / shares of the sum's; then those of the sum.
    lines = [(shares * ratio**2 / 2, 0.0)]
    if tau is not None:
      lines += [
        (ratio**2 / 2, tau * dimension),
        ((ratio + math.sqrt(dimension) * tau) ** 2 / 2, 0.0),
      ]
    return _base.lowest(lines)

  def _penalty(self, bound: Bound | None) -> float | None:
    """Returns tau: how far a sum of shares is from one discrete Gaussian (0 for a single share).

    None where a share is too small for the proof, sigma < 1/2 in steps of the grid.
    """
    shares = self.shares or 1
    if shares == 1:
      return 0.0
    variance = (self.noise_multiplier * _base.l2_of(bound)) ** 2 / shares
    if variance < _LEAST_VARIANCE:
      return None
    return 10 * sum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, shares))

  def table_of(self, sigma: float) -> Any:
    """Returns the table from which noise of scale `sigma`, in steps of the grid, is drawn."""
    from fedjax_mem.kernels.random import noise

    return noise.discrete_table(sigma)
