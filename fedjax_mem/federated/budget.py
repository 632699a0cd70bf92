"""The budget of one client: what it has released, in a ledger that refuses what would exceed it."""

import dataclasses
import functools

from fedjax_mem.account import Claim, Guarantee, Ledger, ledger


class PrivacyBudgetExceeded(RuntimeError):
  """The budget does not cover a release; nothing was released."""


@functools.lru_cache(maxsize=256)
def _entry(made: Claim, delta: float, budget: float, releases: int) -> ledger.Entry:
  return ledger.ahead('client', made, releases, delta, budget=budget)


class Budget:
  """All releases of one client against one epsilon, whoever asks for them.

  The releases are of one claim: one noise and, where the noise is in the sum of a cohort, one way
  to draw the cohort. Releases of another claim are refused once there was one, since the ledger has
  no epsilon for both together.

  Args:
    epsilon: the epsilon not to exceed, > 0.
    delta: delta of the guarantee, in (0, 1).

  Attributes:
    releases: number of releases charged.
  """

  def __init__(self, epsilon: float, delta: float):
    self._epsilon, self._delta = epsilon, delta
    self._claim: Claim | None = None
    self._notes: tuple[str, ...] = ()
    self.releases = 0

  def check(self, made: Claim, planned: int, more: int = 1) -> Ledger:
    """Returns the ledger of a claim, as it stands, if it covers so many more releases.

    Args:
      made: the claim of all releases.
      planned: number of releases that the noise was computed for.
      more: number of further releases.

    Raises:
      PrivacyBudgetExceeded: they would exceed the budget, or others were charged before.
    """
    made = self._as_before(made)
    if self._claim not in (None, made):
      raise PrivacyBudgetExceeded(
        f'releases must all be of one noise and one draw, got others after {self.releases} '
        'releases: no epsilon is known for both together, and nothing was released. New clients '
        'have a budget of their own.'
      )
    entry, last = self._ahead(made, planned, more), self.releases + more
    over = [i for i, epsilon in enumerate(entry.epsilon[:last], 1) if epsilon > self._epsilon]
    if over:
      raise PrivacyBudgetExceeded(
        f'epsilon must be at most {self._epsilon:g} after every release, got '
        f'{entry.epsilon[over[0] - 1]:.4g} after release {over[0]} of {last}: nothing was released.'
      )
    return Ledger(entry, self._epsilon, self.releases)

  def charge(self, made: Claim, planned: int, more: int = 1) -> int:
    """Charges releases before they are made, and returns the number of those before them.

    Raises:
      PrivacyBudgetExceeded: as `check`; nothing is charged.
    """
    before = self.releases
    found = self.check(made, planned, more)
    found.charge(before + more)
    self._claim, self.releases = found.entry.claim, before + more
    self._notes = tuple(dict.fromkeys((*self._notes, *made.notes)))
    return before

  def spent(self, made: Claim, planned: int) -> Guarantee:
    """Returns the guarantee so far; `made` is the claim of a first release."""
    entry = self._ahead(self._claim or made, planned, 0)
    return entry.guarantee(self.releases)._replace(notes=self._notes or made.notes)

  def _as_before(self, made: Claim) -> Claim:
    """Returns the claim by the accountant of the first release: what was stated stays true.

    Of two plans of one noise, 'auto' may choose another for the longer one.
    """
    if self._claim is None:
      return made
    kept = self._claim
    return dataclasses.replace(made, accountant=kept.accountant, truncated=kept.truncated)

  def _ahead(self, made: Claim, planned: int, more: int) -> ledger.Entry:
    """Returns epsilon after each of the planned releases, and further ones that are asked for."""
    last = max(1, self.releases + more)
    # Powers of two: few trajectories are computed, however many releases follow the planned ones.
    ahead = planned if last <= planned else 1 << (last - 1).bit_length()
    return _entry(made, self._delta, self._epsilon, ahead)
