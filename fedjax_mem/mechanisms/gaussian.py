"""Gaussian noise, whose standard deviation is `noise_multiplier` x the L2 bound.

Reference: Dwork and Roth (2014), Theorem 3.22; amplified by Poisson sampling (Abadi et al. 2016,
arXiv 1607.00133) and by fixed-size sampling without replacement, where one client replaces another.
"""

import dataclasses
from typing import Any

from fedjax_mem.core.bound import Bound
from fedjax_mem.core.mechanism import Mechanism


@dataclasses.dataclass(frozen=True)
class Gaussian(Mechanism):
  """Gaussian noise; `noise_multiplier` is its standard deviation over the L2 bound.

  >>> noise, _ = Gaussian(2.0).draw(jax.random.key(0), jnp.zeros(100_000), Bound(l2=3.0), ())
  >>> round(float(noise.std()))
  6
  """

  amplifies = ('poisson', 'without_replacement')
  doubled_by = ('pld',)

  def once(self, moves: int, bound: Bound | None) -> Any:
    """Returns the event of one round in which a neighbour moves the sum by `moves` bounds."""
    import dp_accounting

    return dp_accounting.GaussianDpEvent(self.noise_multiplier / moves)

  def cut(self, draws: Any, moves: int) -> Any:
    """Returns the event of one round with a Poisson cohort that is cut to its capacity."""
    import dp_accounting

    return dp_accounting.TruncatedSubsampledGaussianDpEvent(
      draws.population,
      min(1.0, draws.expected / draws.population),
      draws.capacity,
      self.noise_multiplier / moves,
    )

  def draw(self, key: Any, like: Any, bound: Bound, state: Any) -> tuple[Any, Any]:
    """Returns (float32 noise of the shapes of `like`, state)."""
    from fedjax_mem.kernels.random import noise

    return noise.gaussian(key, like, self.noise_multiplier * bound.l2), state
