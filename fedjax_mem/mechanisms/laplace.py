"""Laplace noise, whose scale is `noise_multiplier` x the L1 bound: pure differential privacy.

Reference: Dwork et al. (2006), Calibrating noise to sensitivity, Theorem 1.
"""

import dataclasses
from typing import Any

from fedjax_mem.core.bound import Bound
from fedjax_mem.core.mechanism import Mechanism


@dataclasses.dataclass(frozen=True)
class Laplace(Mechanism):
  """Laplace noise; `noise_multiplier` is its scale over the L1 bound.

  A release costs epsilon = 1 / `noise_multiplier` where the neighbour's contribution is zero, and
  twice that where it is any other:

  >>> cost = fm.account.epsilon(None, Laplace(4.0), 1, 1e-5, adjacency='replace_special')
  >>> round(cost.epsilon, 3)
  0.25
  """

  norm = 'l1'
  amplifies = ('poisson',)

  def once(self, moves: int, bound: Bound | None) -> Any:
    """Returns the event of one round in which a neighbour moves the sum by `moves` bounds."""
    import dp_accounting

    return dp_accounting.LaplaceDpEvent(self.noise_multiplier / moves)

  def draw(self, key: Any, like: Any, bound: Bound, state: Any) -> tuple[Any, Any]:
    """Returns (float32 noise of the shapes of `like`, state)."""
    from fedjax_mem.kernels.random import noise

    return noise.laplace(key, like, self.noise_multiplier * bound.l1), state
