"""A client's message as integers on public scales: update times weight, weight, aux."""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from fedjax_mem.core import validate


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedPoint:
  """The encoding of floats as integers whose sum over all clients cannot overflow.

  Each part of a message has a public limit and a step. The step is a power of two, the smallest for
  which the sum of n clients at the limit fits b bits: at most 2 * limit / `bound`. Values are
  rounded to the nearest step (an error of at most half a step per client). Multiples of the step
  are summed exactly.

  Attributes:
    num_clients: n, number of clients.
    update: D, number of values of the update.
    aux: A, number of values of aux, which is summed like the update.
    update_limit: largest |update * weight|, > 0.
    weight_limit: largest weight, > 0; weights are not negative.
    aux_limit: largest |aux|, > 0.
    bits: b of the protocol: 16, 32 or 64.

  Raises:
    ValueError: an argument is out of range.
  """

  num_clients: int
  update: int
  aux: int = 0
  update_limit: float
  weight_limit: float
  aux_limit: float = 1.0
  bits: int = 32

  def __post_init__(self) -> None:
    """Checks the numbers."""
    validate.integer(num_clients=self.num_clients)
    validate.integer(at_least=0, update=self.update)
    validate.integer(at_least=0, aux=self.aux)
    validate.positive(update_limit=self.update_limit)
    validate.positive(weight_limit=self.weight_limit)
    validate.positive(aux_limit=self.aux_limit)
    if self.bits not in (16, 32, 64):
      raise ValueError(f'bits must be 16, 32 or 64, got {self.bits!r}.')
    if self.bound < 1:
      raise ValueError(f'bits must be more for {self.num_clients} clients, got {self.bits!r}.')

  @property
  def size(self) -> int:
    """Number of integers in a message: D + 1 + A."""
    return self.update + 1 + self.aux

  @property
  def bound(self) -> int:
    """Largest magnitude of one client's integers."""
    return ((1 << (self.bits - 1)) - 1) // self.num_clients

  def step(self, limit: float) -> float:
    """Returns the step of values up to a limit, a power of two."""
    exponent = math.ceil(math.log2(limit) - math.log2(self.bound))
    # The rounding of the logarithms may have made the exponent one too small.
    while round(limit / 2.0**exponent) > self.bound:
      exponent += 1
    return 2.0**exponent

  def encode(self, update: ArrayLike, weight: float, aux: ArrayLike = ()) -> np.ndarray:
    """Returns the integers of a message, int64 [D + 1 + A].

    Args:
      update: floats [D], not yet multiplied by the weight.
      weight: in [0, weight_limit].
      aux: floats [A].

    Raises:
      ValueError: a shape is wrong, or a value is not finite or above its limit.
    """
    update, aux = np.asarray(update, np.float64), np.asarray(aux, np.float64)
    if update.shape != (self.update,) or aux.shape != (self.aux,):
      got = f'{list(update.shape)} and {list(aux.shape)}'
      raise ValueError(f'update and aux must be [{self.update}] and [{self.aux}], got {got}.')
    if validate.non_negative(weight=weight) > self.weight_limit:
      raise ValueError(f'weight must be at most {self.weight_limit!r}, got {weight!r}.')
    return np.concatenate(
      [
        self._integers('update * weight', update * weight, self.update_limit),
        self._integers('weight', np.array([weight], np.float64), self.weight_limit),
        self._integers('aux', aux, self.aux_limit),
      ]
    )

  def decode(self, total: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """Returns the sums of update * weight [D], of the weights, and of aux [A], as float64."""
    if total.shape != (self.size,):
      raise ValueError(f'total must be [{self.size}], got {list(total.shape)}.')
    update = total[: self.update] * self.step(self.update_limit)
    weight = float(total[self.update] * self.step(self.weight_limit))
    return update, weight, total[self.update + 1 :] * self.step(self.aux_limit)

  def _integers(self, name: str, values: np.ndarray, limit: float) -> np.ndarray:
    largest = float(np.abs(values).max(initial=0.0))
    if not largest <= limit:  # true for NaN as well
      raise ValueError(f'{name} must be finite and at most {limit!r}, got {largest!r}.')
    return np.rint(values / self.step(limit)).astype(np.int64)
