"""Epsilon of a run, by Renyi differential privacy (RDP) or by privacy loss distributions (PLD).

`claim` takes a sampler and a mechanism, chooses an accountant that supports them, and returns a
`Claim`. The claim gives epsilon after any number of rounds, and the whole trajectory before the run
begins. RDP is used where it is valid, PLD on request or where RDP has no event.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from fedjax_mem.account import curves, events, poisson
from fedjax_mem.account.guarantee import Guarantee, Trajectory, noise_of
from fedjax_mem.core import Bound, Draws, Mechanism, validate


def check_delta(delta: float, population: int | None = None) -> float:
  """Returns delta, in (0, 1); warns where it would allow publishing one client's data.

  Raises:
    ValueError: delta is not in (0, 1).
  """
  validate.open_fraction(delta=delta)
  if population and delta >= 1 / population:
    warnings.warn(
      f'delta should be well below 1 / {population} (one over the population), got {delta!r}: a '
      'mechanism that publishes the data of one client at random would satisfy it.',
      UserWarning,
      stacklevel=3,
    )
  return delta


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

  def epsilon(self, rounds: int, delta: float) -> float:
    """Returns epsilon after `rounds` rounds at `delta`, which here does not include overflow."""
    if rounds == 0:
      return 0.0
    event, count = self._event(rounds)
    if self.accountant == 'rdp':
      return float(self._rdp(event, np.asarray([count]), delta)[0])
    if curves.is_gaussian(event):
      return curves.gaussian_epsilon(event, count, self.adjacency, delta)
    interval = self._interval(event, count, delta) if curves.has_grid(event) else 0.0
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

  def trajectory(self, rounds: int, delta: float, points: int = 24) -> Trajectory:
    """Returns epsilon after each round, computed before the run.

    RDP composes linearly, so it is computed for each round. PLD is composed at about `points`
    rounds, the last among them; between them epsilon is that of the next such round or that of RDP,
    the lower of the two, since both are valid bounds.

    Raises:
      ValueError: rounds or points is not a whole number >= 1, or delta not in (0, 1).
    """
    validate.integer(rounds=rounds)
    validate.integer(points=points)
    validate.open_fraction(delta=delta)
    if self.accountant == 'rdp':
      epsilon = self._rdp_trajectory(rounds, delta)
    else:
      epsilon = self._pld_trajectory(rounds, delta, points)
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

  def _pld_trajectory(self, rounds: int, delta: float, points: int) -> np.ndarray:
    chosen = np.unique(np.geomspace(1, rounds, min(points, rounds)).round().astype(int))
    at = np.asarray([self.epsilon(int(r), delta) for r in chosen])
    upper = np.maximum.accumulate(at)[np.searchsorted(chosen, np.arange(1, rounds + 1))]
    by_rdp = dataclasses.replace(self, accountant='rdp')
    if self.truncated or not by_rdp.supported(rounds):
      return upper
    lower: np.ndarray = np.minimum(upper, by_rdp._rdp_trajectory(rounds, delta))
    return lower

  def _interval(self, event: Any, count: int, delta: float) -> float:
    """Returns the interval of PLD's grid: coarser where epsilon is large.

    Memory grows with epsilon over the interval. Epsilon is estimated by RDP.
    """
    rough = curves.pure_epsilon(event, count)
    if rough is None:
      doubled = 2 if self.adjacency == 'replace_one' else 1
      weaker = self.mechanism.with_multiplier(self.mechanism.noise_multiplier / doubled)
      alike = dataclasses.replace(
        self, mechanism=weaker, adjacency='add_or_remove_one', accountant='rdp', truncated=False
      )
      rough = min(alike.epsilon(count, delta), 1e6)
    # The losses of a truncated cohort spread over twice the range, and take ten times the work.
    return (1e-3 if self.truncated else 1e-4) * max(1.0, rough / 50)


class Options(TypedDict, total=False):
  """The arguments of `claim` that say how to account for a run."""

  adjacency: str | None
  accountant: str
  bound: Bound | None
  notes: tuple[str, ...]


class ClaimOptions(Options, total=False):
  """All optional arguments of `claim`: also those that only the statement contains."""

  trust: str | None
  unit: str


def claim(
  sampling: Draws | None,
  mechanism: Mechanism,
  *,
  rounds: int,
  delta: float,
  adjacency: str | None = None,
  accountant: str = 'auto',
  bound: Bound | None = None,
  trust: str | None = None,
  unit: str = 'client',
  notes: tuple[str, ...] = (),
) -> Claim:
  """Returns what can be claimed of a sampler and a mechanism, by an accountant that supports them.

  >>> sampling = Draws('poisson', population=3383, expected=120, capacity=3383)
  >>> made = claim(sampling, fm.mechanisms.Gaussian(1.2), rounds=100, delta=1e-5)
  >>> made.accountant, made.adjacency, [round(made.epsilon(r, 1e-5), 2) for r in (10, 100)]
  ('rdp', 'add_or_remove_one', [1.14, 1.99])

  Args:
    sampling: how the cohort is drawn; None: noise that each client adds to its own message.
    mechanism: the noise.
    rounds: rounds of the whole run, >= 1.
    delta: target, in (0, 1).
    adjacency: one of `events.ADJACENCIES`; by default the first of `mechanism.adjacencies`.
    accountant: 'auto' (RDP where valid, else PLD), 'rdp' or 'pld'.
    bound: the bound that the noise is scaled to; needed where the cost depends on it (noise on
      integers).
    trust: 'central' or 'local', for the statement; by default local without a sampler.
    unit: 'client' or 'example', for the statement.
    notes: caveats, for the statement.

  Raises:
    ValueError: a number is out of range.
    IncompatibleStages: the pair has no valid event, or none that the accountant supports.
  """
  validate.integer(rounds=rounds)
  check_delta(delta, None if sampling is None else sampling.population)
  validate.one_of(('auto', *events.ACCOUNTANTS), accountant=accountant)
  events.check(sampling, mechanism)
  adjacency = adjacency or mechanism.adjacencies(sampling)[0]
  events.check_adjacency(sampling, mechanism, adjacency)
  names = events.ACCOUNTANTS if accountant == 'auto' else (accountant,)
  trust = trust or ('local' if sampling is None else 'central')
  for name in names:
    made = Claim(sampling, mechanism, adjacency, name, False, bound, trust, unit, tuple(notes))
    if made.supported(rounds):
      return _fitting(made, rounds, delta, accountant)
  raise events.refuse(sampling, mechanism, _reason(made, rounds, names))


def _reason(made: Claim, rounds: int, names: Sequence[str]) -> str:
  """Returns why no accountant supports a claim, and which similar claims are supported."""
  others = [
    f'{name!r} with {other!r}'
    for name in events.ACCOUNTANTS
    for other in events.ADJACENCIES
    if _holds(dataclasses.replace(made, adjacency=other, accountant=name), rounds)
  ]
  remedy = f'; supported: {", ".join(others)}' if others else ''
  return f'no event of {" or ".join(map(repr, names))} covers it with {made.adjacency!r}{remedy}'


def _holds(made: Claim, rounds: int) -> bool:
  try:
    return made.supported(rounds)
  except ValueError:
    return False


def _fitting(made: Claim, rounds: int, delta: float, accountant: str) -> Claim:
  """Returns the claim, for a truncated cohort if overflow would add too much to delta.

  Raises:
    IncompatibleStages: overflow adds too much, and the accountant has no event for truncation.
  """
  tau = poisson.overflow(made.sampling, rounds) if made.overflow_counts else 0.0
  if tau == 0:
    return made
  most = poisson.SHARE * delta
  if 2 * tau <= most and made.added_delta(rounds, made.epsilon(rounds, delta)) <= most:
    return made
  rows = made.sampling.capacity if made.sampling else 0
  cut = dataclasses.replace(made, accountant='pld', truncated=True)
  by_draw = made.mechanism.amplified(made.sampling, made.adjacency)
  if accountant != 'rdp' and by_draw and _holds(cut, rounds):
    return cut
  raise events.refuse(
    made.sampling,
    made.mechanism,
    f'a Poisson cohort overflows its {rows} rows too often (probability {tau:.2g}'
    f' in {rounds} rounds at δ = {delta:g}); give it more rows, or use the accountant '
    "'pld' where the noise is Gaussian",
  )


def epsilon(
  sampling: Draws | None,
  mechanism: Mechanism,
  rounds: int,
  delta: float,
  **how: Unpack[ClaimOptions],
) -> Guarantee:
  """Returns the guarantee after `rounds` rounds; `how` as in `claim`.

  >>> from fedjax_mem.core import Draws
  >>> from fedjax_mem.mechanisms import Gaussian
  >>> sampling = Draws('poisson', population=3383, expected=120, capacity=3383)
  >>> str(epsilon(sampling, Gaussian(1.2), rounds=100, delta=1e-5))[:27]
  'ε = 1.986 at δ = 1e-05 afte'
  """
  made = claim(sampling, mechanism, rounds=rounds, delta=delta, **how)
  return made.guarantee(rounds, delta)


def trajectory(
  sampling: Draws | None,
  mechanism: Mechanism,
  rounds: int,
  delta: float,
  **how: Unpack[ClaimOptions],
) -> Trajectory:
  """Returns epsilon after each round; `how` as in `claim`.

  >>> sampling = Draws('poisson', population=3383, expected=120, capacity=3383)
  >>> path = trajectory(sampling, fm.mechanisms.Gaussian(1.2), rounds=100, delta=1e-5)
  >>> path.epsilon.shape, path.epsilon[[0, 9, 99]].round(2).tolist()
  ((100,), [0.94, 1.14, 1.99])
  """
  made = claim(sampling, mechanism, rounds=rounds, delta=delta, **how)
  return made.trajectory(rounds, delta)
