"""What noise on integers shares: shares of clients, and costs that are lines in the Renyi order."""

import math
from typing import Any

from fedjax_mem.core import validate
from fedjax_mem.core.bound import Bound

# Order at which the best of several bounds that are lines in the order is chosen.
_TYPICAL_ORDER = 16


def check_shares(shares: int | None, dimension: int | None) -> None:
  """Raises `ValueError` for numbers of shares or of coordinates that are none."""
  for name, value in (('shares', shares), ('dimension', dimension)):
    if value is not None:
      validate.integer(**{name: value})


def lowest(lines: list[tuple[float, float]]) -> tuple[float, float]:
  """Returns (rho, xi) of the bound xi + rho x order that is lowest at a typical order."""
  return min(lines, key=lambda line: line[0] * _TYPICAL_ORDER + line[1])


def concentrated(line: tuple[float, float]) -> Any:
  """Returns the event whose Renyi divergence of order a is at most xi + rho a."""
  import dp_accounting

  return dp_accounting.ZCDpEvent(*line)


def l2_of(bound: Bound | None) -> float:
  """Returns the L2 bound on the integer grid.

  Raises:
    ValueError: it is not known.
  """
  if bound is None or not isinstance(bound.l2, int | float) or not math.isfinite(bound.l2):
    raise ValueError(
      f'bound must have the L2 norm of one contribution on the integer grid, got {bound!r}.'
    )
  return float(bound.l2)
