"""Plain data that says which noise was added to what, for the accountant.

A side that adds noise states a `Mechanism` in its `Noises`; the accountant pairs it with the
`Draws` of the layer that draws. Nothing here is an array or a function.
"""

import dataclasses
import itertools

from fedjax_mem.core import validate

NAMES = ('gaussian', 'laplace', 'discrete_gaussian', 'skellam', 'tree', 'matrix')
TRUSTS = ('central', 'local')
UNITS = ('client', 'example')


@dataclasses.dataclass(frozen=True)
class Mechanism:
  """Noise added in a round, relative to what one client (or example) can change.

  The multiplier is relative to the add-or-remove-one sensitivity, which is the norm bound C itself:
  the accountant doubles the sensitivity where one client is replaced by another.

  Attributes:
    name: 'gaussian', 'laplace' (norms are L1), 'discrete_gaussian', 'skellam', 'tree' (Gaussian
      noise at each node of a binary tree) or 'matrix' (Gaussian noise Z, correlated over rounds).
    noise_multiplier: standard deviation (Laplace: scale; discrete Gaussian: its parameter sigma;
      tree: of a node; matrix: of Z; noise that is a sum of shares: of the sum) over the norm bound
      of one contribution.
    trust: 'central' (noise on the sum) or 'local' (each client noises its own message).
    unit: what one neighbour is: a 'client' or an 'example'.
    l2: discrete noise: L2 bound of one contribution in units of the integer grid, rounding
      included.
    l1: skellam: L1 bound in units of the grid; by default min(sqrt(dimension) l2, l2 ** 2), which
      holds for any vector of integers.
    dimension: discrete noise: number of coordinates.
    shares: discrete noise: parties whose independent noise was summed (the fewest that may
      survive). A sum of discrete Gaussians is not one, which costs a little; a sum of Skellams is.
    carried: whether clients bring the noise: where one is missing, its share is missing too.
    restart: tree: rounds between two fresh trees; None: one tree for the whole run.
    sensitivities: matrix: L2 sensitivity of the encoded contributions of one client of bound 1, in
      the rounds up to the r-th, for each r (never decreasing). One round more is not covered.
    separation: matrix: rounds between two participations of a client that `sensitivities` assumes.
  """

  name: str
  noise_multiplier: float
  _: dataclasses.KW_ONLY
  trust: str = 'central'
  unit: str = 'client'
  l2: float | None = None
  l1: float | None = None
  dimension: int | None = None
  shares: int = 1
  carried: bool = False
  restart: int | None = None
  sensitivities: tuple[float, ...] = ()
  separation: int = 1

  def __post_init__(self):
    validate.one_of(NAMES, mechanism=self.name)
    validate.positive(noise_multiplier=self.noise_multiplier)
    validate.one_of(TRUSTS, trust=self.trust)
    validate.one_of(UNITS, unit=self.unit)
    validate.integer(shares=self.shares)
    validate.integer(separation=self.separation)
    for name in ('l2', 'l1'):
      if getattr(self, name) is not None:
        validate.positive(**{name: getattr(self, name)})
    for name in ('dimension', 'restart'):
      if getattr(self, name) is not None:
        validate.integer(**{name: getattr(self, name)})
    self._check_discrete()
    self._check_matrix()

  def _check_discrete(self):
    """Raises if the bounds on the integer grid that the noise needs are unknown."""
    summed = self.name == 'discrete_gaussian' and self.shares > 1
    if (summed or self.name == 'skellam') and (self.l2 is None or self.dimension is None):
      raise ValueError(
        f'l2 and dimension must be given for {self.name} noise'
        f'{" of several shares" if summed else ""}, got {self.l2!r} and {self.dimension!r}.'
      )

  def _check_matrix(self):
    """Stores the sensitivities as a tuple; raises if they are missing or decrease."""
    values = tuple(float(s) for s in self.sensitivities)
    object.__setattr__(self, 'sensitivities', values)
    rising = all(a <= b for a, b in itertools.pairwise(values))
    if self.name == 'matrix' and not (values and values[0] > 0 and rising):
      raise ValueError(
        'sensitivities must be numbers > 0 that never decrease, one for each round, '
        f'got {values[:4]!r}{"…" if len(values) > 4 else ""}.'
      )
