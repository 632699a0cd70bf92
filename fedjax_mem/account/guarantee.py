"""What is stated of privacy: epsilon and delta, and everything that they depend on."""

from typing import NamedTuple

import numpy as np

from fedjax_mem.core import Mechanism

# (largest epsilon, name) of each level.
LEVELS = ((1.0, 'Strong'), (5.0, 'Moderate'), (10.0, 'Weak'))
EXACT = 'exact (integers)'
# Of the ideal noise, not of what is added: a float32 Gaussian ends near 5.4 standard deviations, so
# the exact law of one coordinate has a delta close to 1 at any epsilon.
IDEAL = 'ideal noise (float32 simulation)'


def level(epsilon: float) -> str:
  """Returns the privacy level of an epsilon: Strong (<= 1), Moderate, Weak (<= 10) or Minimal.

  >>> [level(epsilon) for epsilon in (1.0, 5.0, 10.0, 11.0)]
  ['Strong', 'Moderate', 'Weak', 'Minimal']
  """
  return next((name for bound, name in LEVELS if epsilon <= bound), 'Minimal')


def noise_of(mechanism: Mechanism) -> str:
  """Returns whether a statement is of the noise that is drawn, `EXACT`, or of ideal noise, `IDEAL`.

  Noise for integers is drawn from a table of its distribution, of 64-bit fractions, and added
  without rounding. Other noise is drawn and added in float32.
  """
  return EXACT if mechanism.integers else IDEAL


class Guarantee(NamedTuple):
  """A statement of differential privacy, with everything that it depends on.

  >>> stated = Guarantee(1.5, 1e-5, 'RDP', 'replace_one', 'client', 'central', 9, notes=('a note',))
  >>> str(stated)[-56:]
  'RDP): Moderate; ideal noise (float32 simulation); a note'

  Attributes:
    epsilon: epsilon of the rounds so far.
    delta: the target, plus what overflowing Poisson cohorts add to it.
    accountant: 'RDP' or 'PLD'.
    adjacency: what neighbouring data sets are, one of `events.ADJACENCIES`.
    unit: what is protected, a 'client' or an 'example'.
    trust: 'central' (the noise in the sum protects) or 'local' (each message is protected, from the
      server too).
    rounds: number of rounds that ran.
    noise: `EXACT` if the noise that is drawn has the law that is accounted for, else `IDEAL`.
    notes: caveats, such as that the noise is repeatable.
  """

  epsilon: float
  delta: float
  accountant: str
  adjacency: str
  unit: str
  trust: str
  rounds: int
  noise: str = IDEAL
  notes: tuple[str, ...] = ()

  @property
  def level(self) -> str:
    """Strong, Moderate, Weak or Minimal."""
    return level(self.epsilon)

  def __str__(self) -> str:
    said = (
      f'ε = {self.epsilon:.4g} at δ = {self.delta:.3g} after {self.rounds} rounds '
      f'({self.unit} level, {self.trust}, {self.adjacency.replace("_", "-")}, {self.accountant}): '
      f'{self.level}'
    )
    return '; '.join((said, self.noise, *self.notes))


class Trajectory(NamedTuple):
  """Epsilon and delta after each round 1 … R.

  Attributes:
    epsilon: [R] float64, never decreasing.
    delta: [R] float64, the reported delta.
    accountant: 'RDP' or 'PLD'.
    adjacency: one of `events.ADJACENCIES`.
  """

  epsilon: np.ndarray
  delta: np.ndarray
  accountant: str
  adjacency: str
