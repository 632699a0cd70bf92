"""Claims: a sampler, a mechanism, an adjacency and an accountant, and what they make of epsilon."""

import dataclasses
import math
from typing import Any

import numpy as np

from fedjax_mem.account import curves, events, poisson, search
from fedjax_mem.account.guarantee import Guarantee, Trajectory, noise_of
from fedjax_mem.core import Bound, Draws, Mechanism, validate

# The grid of PLD at the rounds of a trajectory but the last, over that of the last: the square root
# of ten is the step between two grids.
_COARSER = 10**0.5


@dataclasses.dataclass(frozen=True)
class Claim:
  """What is accounted for, and how: a sampler, a mechanism, an adjacency and an accountant.

  Attributes:
    sampling: how the cohort is drawn; None: noise that each client adds to its own message.
    mechanism: the noise.
    adjacency: one of `events.ADJACENCIES`.
    accountant: 'rdp' or 'pld'.
    truncated: whether a Poisson cohort is accounted for as cut to its capacity; otherwise the
      probability that it overflows is added to delta.
    bound: the bound that the noise is scaled to, where its cost depends on that (noise on
      integers).
    trust: 'central' or 'local', for the statement.
    unit: 'client' or 'example', for the statement.
    notes: caveats, for the statement. Two claims that differ only in them are equal.
    chosen: whether 'auto' chose the accountant; makes no difference to equality either.
  """

  sampling: Draws | None
  mechanism: Mechanism
  adjacency: str
  accountant: str
  truncated: bool = False
  bound: Bound | None = None
  trust: str = 'central'
  unit: str = 'client'
  notes: tuple[str, ...] = dataclasses.field(default=(), compare=False)
  chosen: bool = dataclasses.field(default=False, compare=False)

  def _event(self, rounds: int, accountant: str | None = None) -> tuple[Any, int]:
    return events.build(
      self.sampling,
      self.mechanism,
      self.adjacency,
      accountant or self.accountant,
      rounds,
      self.bound,
      self.truncated,
    )

  def supported(self, rounds: int) -> bool:
    """Returns whether the accountant supports the event of so many rounds."""
    event, _ = self._event(rounds)
    return curves.supports(self.accountant, event, self.adjacency)

  def epsilon(self, rounds: int, delta: float, coarser: float = 1.0) -> float:
    """Returns epsilon after `rounds` rounds at `delta`, which here does not include overflow.

    Args:
      rounds: number of rounds, >= 0.
      delta: target, in (0, 1).
      coarser: how many times as coarse PLD's grid is: less work, and epsilon a little higher.
    """
    if rounds == 0:
      return 0.0
    event, count = self._event(rounds)
    if self.accountant == 'rdp':
      return float(self._rdp(event, np.asarray([count]), delta)[0])
    if curves.is_gaussian(event):
      return curves.gaussian_epsilon(event, count, self.adjacency, delta)
    interval = self._interval(event, count, delta, coarser) if curves.has_grid(event) else 0.0
    return curves.pld_epsilon(event, count, self.adjacency, delta, interval)

  def added_delta(self, rounds: int, epsilon: float) -> float:
    """Returns what overflowing Poisson cohorts add to delta, at that epsilon."""
    return poisson.added_delta(self.sampling, rounds, epsilon) if self.overflow_counts else 0.0

  @property
  def overflow_counts(self) -> bool:
    """Whether the probability that a cohort overflows, and is cut, has to be added to delta.

    It has not if the draw is the same for both neighbours and no amplification is claimed for it.
    """
    by_draw = self.mechanism.amplified(self.sampling, self.adjacency)
    return not self.truncated and (by_draw or self.adjacency == 'add_or_remove_one')

  def guarantee(self, rounds: int, delta: float) -> Guarantee:
    """Returns the statement after `rounds` rounds.

    Raises:
      ValueError: rounds is not a whole number >= 0, or delta not in (0, 1).
    """
    validate.integer(at_least=0, rounds=rounds)
    validate.open_fraction(delta=delta)
    epsilon = self.epsilon(rounds, delta)
    return self.stated(epsilon, min(1.0, delta + self.added_delta(rounds, epsilon)), rounds)

  def stated(self, epsilon: float, delta: float, rounds: int) -> Guarantee:
    """Returns the statement of an epsilon and a reported delta that were computed before."""
    return Guarantee(
      epsilon,
      delta,
      self.accountant.upper(),
      self.adjacency,
      self.unit,
      self.trust,
      rounds,
      noise_of(self.mechanism),
      self.notes,
    )

  def trajectory(
    self, rounds: int, delta: float, points: int = 24, every: int = 1, budget: float | None = None
  ) -> Trajectory:
    """Returns epsilon after each round, computed before the run.

    RDP composes linearly, so it is computed for each round. PLD is composed after each of at most
    `points` rounds; of a longer run at about so many, and all but the last on a coarser grid.
    Between them epsilon is that of the next such round or that of RDP, the lower of the two, since
    both are valid bounds.

    Args:
      rounds: R, >= 1.
      delta: target, in (0, 1).
      points: rounds at which PLD is composed, >= 1.
      every: PLD is composed after multiples of so many rounds, a divisor of R.
      budget: PLD is composed at the last of these rounds whose epsilon is at most the budget, too.

    Raises:
      ValueError: a number is out of range.
    """
    validate.integer(rounds=rounds)
    validate.integer(points=points)
    validate.integer(every=every)
    validate.open_fraction(delta=delta)
    if self.accountant == 'rdp':
      epsilon = self._rdp_trajectory(rounds, delta)
    else:
      epsilon = self._pld_trajectory(rounds, delta, points, every, budget)
    delta_at = [min(1.0, delta + self.added_delta(r + 1, e)) for r, e in enumerate(epsilon)]
    return Trajectory(epsilon, np.asarray(delta_at), self.accountant.upper(), self.adjacency)

  def _rdp(self, event: Any, counts: np.ndarray, delta: float) -> np.ndarray:
    return curves.rdp_epsilon(event, counts, self.adjacency, delta, self.mechanism.orders)

  def _rdp_trajectory(self, rounds: int, delta: float) -> np.ndarray:
    """Returns epsilon [R]: of one event composed, or of R events if `event` is overridden."""
    if type(self.mechanism).event is not Mechanism.event:
      return np.asarray([self.epsilon(r, delta) for r in range(1, rounds + 1)])
    apart = 1 if self.sampling is None else self.sampling.min_sep
    counts = -(-np.arange(1, rounds + 1) // apart)
    return self._rdp(self._event(rounds)[0], counts, delta)

  def _pld_trajectory(
    self, rounds: int, delta: float, points: int, every: int, budget: float | None
  ) -> np.ndarray:
    many = -(-rounds // every)
    if many <= points:
      chosen = exact = set(range(1, many + 1))
    else:
      chosen, exact = {int(x) for x in np.geomspace(1, many, points).round()}, {many}
    if budget is not None and self.epsilon(every, delta) <= budget < self.epsilon(rounds, delta):
      within = lambda k: self.epsilon(min(every * k, rounds), delta) <= budget
      exact.add(search.largest(within, many))
    at = sorted(chosen | exact)
    grids = [1.0 if x in exact else _COARSER for x in at]
    ends = np.minimum(every * np.asarray(at), rounds)
    found = [self.epsilon(int(r), delta, grid) for r, grid in zip(ends, grids, strict=True)]
    # Epsilon never falls, so a later value bounds all before it.
    bounds = np.minimum.accumulate(np.maximum.accumulate(found)[::-1])[::-1]
    upper: np.ndarray = bounds[np.searchsorted(ends, np.arange(1, rounds + 1))]
    by_rdp = dataclasses.replace(self, accountant='rdp')
    if self.truncated or not by_rdp.supported(rounds):
      return upper
    lower: np.ndarray = np.minimum(upper, by_rdp._rdp_trajectory(rounds, delta))
    return lower

  def _interval(self, event: Any, count: int, delta: float, coarser: float) -> float:
    """Returns the interval of PLD's grid, by an estimate of epsilon.

    The grid adds to the spread of a round's loss. It is a small part of that spread (the error of
    epsilon is then about 1e-5 of it), but not below 1e-4. It is coarser where epsilon is large,
    since memory grows with epsilon over the interval.
    """
    pure = curves.pure_epsilon(event, count)
    rough = self._rough(count, delta) if pure is None else pure
    # The losses of a truncated cohort spread over twice the range, and take ten times the work.
    least = (1e-3 if self.truncated else 1e-4) * max(1.0, rough / 50)
    spread = 0.0 if pure is not None else rough / math.sqrt(2 * count * -math.log(delta))
    wanted = coarser * max(least, spread / 80)
    # One of few values, so that the losses of a round are computed for few grids.
    return float(max(least, 10 ** (math.floor(2 * math.log10(wanted) + 1e-9) / 2)))

  def _rough(self, count: int, delta: float) -> float:
    """Returns an estimate of epsilon, by RDP."""
    doubled = 2 if self.adjacency == 'replace_one' else 1
    weaker = self.mechanism.with_multiplier(self.mechanism.noise_multiplier / doubled)
    alike = dataclasses.replace(
      self, mechanism=weaker, adjacency='add_or_remove_one', accountant='rdp', truncated=False
    )
    return min(alike.epsilon(count, delta), 1e6)
