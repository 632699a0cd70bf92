"""What one client can change: norms of one message, and how many messages of a cohort."""

import math
from typing import Any, NamedTuple

UNKNOWN = math.inf


class _InRound:
  """A number that is known only within a round: arithmetic with it gives it back.

  It has no order, so that comparing it raises: the result would depend on a number that the
  accountant does not have.
  """

  def _absorb(self, other: Any = 0) -> Any:
    return UNKNOWN if isinstance(other, float) and other == UNKNOWN else self

  __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _absorb
  __truediv__ = __rtruediv__ = __pow__ = _absorb

  def __getitem__(self, key: Any) -> '_InRound':
    return self

  def __repr__(self) -> str:
    return 'IN_ROUND'


IN_ROUND = _InRound()


class Bound(NamedTuple):
  """What one client can change: the norms of a message, and how many messages.

  Each is a number, `UNKNOWN` (infinite) or `IN_ROUND`; in a compiled round a norm may be a traced
  scalar.

  Attributes:
    l1: bound of the L1 norm of one message's update.
    l2: bound of its L2 norm.
    linf: bound of its largest absolute value.
    rows: how many messages of the cohort one client can change. Only a cohort side makes it more
      than 1, and no clip makes it 1 again.
  """

  l1: Any = UNKNOWN
  l2: Any = UNKNOWN
  linf: Any = UNKNOWN
  rows: Any = UNKNOWN

  def scaled(self, factor: float) -> 'Bound':
    """Returns the bound of factor x message.

    Raises:
      ValueError: factor < 0; a message times -1 has the bound of the message.
    """
    if isinstance(factor, int | float) and not factor >= 0:
      raise ValueError(f'factor must be >= 0, got {factor!r}.')
    return Bound(self.l1 * factor, self.l2 * factor, self.linf * factor, self.rows)

  def summed(self, slack: float = 0.0) -> 'Bound':
    """Returns what one client can change in the sum of the cohort's messages.

    If it can change its own message only, that message is there or not: the sum moves by its norm.
    If it can change messages of other clients, each moves from one point of the norm's ball to
    another, by up to twice the norm.

    Args:
      slack: by how much more the sum can move since it is rounded, relative to the norm of a
        message; see `rounding`.
    """
    return self.scaled((1 if self.rows == 1 else 2 * self.rows) + slack)


def rounding(terms: int, after: bool = False) -> float:
  """Returns how far the rounded sums of two neighbours may be apart beyond the sums themselves.

  Relative to C, the norm of the largest message, for float32: u = 2 ** -24 is its rounding unit.
  Each of the two sums, of norm up to n C, is off by at most (u + 6 n u ** 2) n C, as is shown in
  `kernels/loops/sums.py`; the last factor covers terms of higher order. After the sum, a linear
  server side, such as a rotation back, may be off by 32 u n C.

  >>> round(rounding(100), 7), round(rounding(16_385), 5)
  (1.19e-05, 0.00197)

  Args:
    terms: n, the most messages of a sum.
    after: the slack of a server side that works on the sum, instead of that of the sum.
  """
  u = 2.0**-24
  each = 32 * u if after else u + 6 * terms * u**2
  return 2 * terms * each * (1 + 2**-10)


def check(bound: Any, whose: str) -> None:
  """Raises `ValueError` for anything but a bound with norms >= 0 and rows >= 1.

  Args:
    bound: what a side states.
    whose: the side, for the error message.
  """
  if not isinstance(bound, Bound):
    raise ValueError(f'{whose} must state a Bound, got {bound!r}.')
  for name, value in bound._asdict().items():
    least = 1 if name == 'rows' else 0
    if isinstance(value, int | float) and not value >= least:
      raise ValueError(f'{whose} must state {name} >= {least}, got {value!r}.')


def known(value: Any) -> bool:
  """Returns whether a bound is a finite number, or a number that is known in the round."""
  return value is IN_ROUND or math.isfinite(value)
