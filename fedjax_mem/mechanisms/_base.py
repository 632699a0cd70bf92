"""Noise on integers: drawn at once or in shares, from a table; its cost is linear in the order."""

import dataclasses
import math
from typing import Any

from fedjax_mem.core import validate
from fedjax_mem.core.bound import Bound
from fedjax_mem.core.mechanism import Mechanism

# The Renyi order at which the lowest of several bounds, each linear in the order, is chosen.
_TYPICAL_ORDER = 16


@dataclasses.dataclass(frozen=True)
class OnIntegers(Mechanism):
  """Noise for integers, drawn once by the server or in shares by the clients.

  Attributes:
    shares: the fewest clients that add it, each an equal share of the variance of the sum; None: it
      is drawn at once.
    dimension: number of coordinates, or an upper bound of it.
  """

  integers = True
  shares: int | None = None
  dimension: int | None = None

  def __post_init__(self) -> None:
    """Raises `ValueError` for numbers that are out of range."""
    super().__post_init__()
    for name, value in (('shares', self.shares), ('dimension', self.dimension)):
      if value is not None:
        validate.integer(**{name: value})

  @property
  def carriers(self) -> int | None:
    """The fewest clients that add the noise in shares; None: it is drawn at once."""
    return self.shares

  def check(self, bound: Bound, like: Any) -> None:
    """Raises `ValueError` for more values than `dimension`, or a bound with too large a table."""
    from fedjax_mem.core import tree

    size = tree.size(like)
    if self.dimension is not None and size > self.dimension:
      raise ValueError(
        f'dimension must be at least the {size} values that are noised, got {self.dimension!r}.'
      )
    self._table(bound)

  def concentrated(self, moves: int, bound: Bound | None = None) -> tuple[float, float]:
    """Returns (rho, xi): the Renyi divergence of order a is at most xi + rho a.

    Args:
      moves: how far the sum moves, in bounds: 1 or 2.
      bound: the bound of one contribution, on the integer grid.
    """
    raise NotImplementedError

  def table_of(self, sigma: float) -> Any:
    """Returns the table from which noise of scale `sigma`, in steps of the grid, is drawn."""
    raise NotImplementedError

  def once(self, moves: int, bound: Bound | None) -> Any:
    """Returns the event of one round in which a neighbour moves the sum by `moves` bounds."""
    import dp_accounting

    return dp_accounting.ZCDpEvent(*self.concentrated(moves, bound))

  def _table(self, bound: Bound) -> Any:
    return self.table_of(self.noise_multiplier * l2_of(bound) / math.sqrt(self.shares or 1))

  def draw(self, key: Any, like: Any, bound: Bound, state: Any) -> tuple[Any, Any]:
    """Returns (int32 noise of the shapes of `like`, state); of one share, if there are any."""
    from fedjax_mem.kernels.random import noise

    return noise.tabled(key, like, self._table(bound)), state


def lowest(lines: list[tuple[float, float]]) -> tuple[float, float]:
  """Returns the (rho, xi) whose bound xi + rho x order is lowest at a typical order."""
  return min(lines, key=lambda line: line[0] * _TYPICAL_ORDER + line[1])


def l2_of(bound: Bound | None) -> float:
  """Returns the L2 bound on the integer grid.

  Raises:
    ValueError: it is not a known number.
  """
  if bound is None or not isinstance(bound.l2, int | float) or not math.isfinite(bound.l2):
    raise ValueError(
      f'bound must have the L2 norm of one contribution on the integer grid, got {bound!r}.'
    )
  return float(bound.l2)
