"""The ledger of a run: what is released, epsilon after each round, and when to stop.

The whole trajectory of epsilon is computed when the run is planned; a round only looks it up. A
ledger is plain data, written atomically. A round is charged, and the ledger is on the disk, before
the round runs: whatever a killed run has published, its ledger states at least that. A round that
runs again after a resume draws the same cohort and the same noise, so it releases nothing new and
is charged once.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, Unpack

from fedjax_mem import mechanisms
from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.account.accountant import Options, claim
from fedjax_mem.account.claims import Claim
from fedjax_mem.account.guarantee import Guarantee
from fedjax_mem.core import Bound, Draws, Mechanism, validate
from fedjax_mem.core.mechanism import path as path_of

T = TypeVar('T')
VERSION = 4


class Entry(NamedTuple):
  """What a run releases, and epsilon after each of the planned rounds.

  Attributes:
    layer: name of the layer that adds the noise.
    claim: what is accounted for, and how.
    target_delta: delta before overflow is added.
    epsilon: epsilon after rounds 1 … R.
    delta: reported delta after rounds 1 … R.
  """

  layer: str
  claim: Claim
  target_delta: float
  epsilon: tuple[float, ...]
  delta: tuple[float, ...]

  def guarantee(self, rounds: int) -> Guarantee:
    """Returns the statement after `rounds` of the planned rounds."""
    epsilon = self.epsilon[rounds - 1] if rounds else 0.0
    delta = self.delta[rounds - 1] if rounds else self.target_delta
    return self.claim.stated(epsilon, delta, rounds)

  def noting(self, *entries: 'Entry') -> 'Entry':
    """Returns this entry with the notes of all entries: what was to be said of a run stays so."""
    notes = dict.fromkeys(note for x in entries for note in x.claim.notes)
    return self._replace(claim=dataclasses.replace(self.claim, notes=tuple(notes)))


class Ledger:
  """The cost of the server's releases, for central noise.

  Attributes:
    entry: what is released, and epsilon after each planned round.
    budget: the epsilon not to exceed, or None.
    planned: rounds that the entry covers.
    charged: rounds charged, which the guarantee states.
    done: rounds whose records are written, at most `charged`.
    allowed: the most rounds within the budget (`planned` without one).
  """

  def __init__(self, entry: Entry, budget: float | None = None, charged: int = 0, done: int = 0):
    self.entry = entry
    self.budget = None if budget is None else validate.positive(budget=budget)
    self.planned = len(entry.epsilon)
    self.charged = validate.integer(at_least=0, at_most=self.planned, charged=charged)
    self.done = validate.integer(at_least=0, at_most=self.charged, done=done)
    self.allowed = within(entry, self.budget, 'round')

  @classmethod
  def plan(
    cls,
    sampling: Draws,
    layer: str,
    mechanism: Mechanism,
    *,
    rounds: int,
    delta: float,
    budget: float | None = None,
    **how: Unpack[Options],
  ) -> 'Ledger':
    """Returns the ledger of a run before its first round.

    Args:
      sampling: how the cohort is drawn.
      layer: name of the layer that adds the noise.
      mechanism: the noise that it adds to the sum.
      rounds: R, rounds of the whole run.
      delta: target, in (0, 1).
      budget: the epsilon not to exceed, or None.
      **how: `bound`, `adjacency`, `accountant` and `notes`, as in `accountant.claim`.

    Raises:
      ValueError: a number is out of range, or the budget does not cover one round.
      IncompatibleStages: the pair has no valid event.
    """
    if budget is not None:
      validate.positive(budget=budget)
    made = claim(sampling, mechanism, rounds=rounds, delta=delta, **how)
    return cls(ahead(layer, made, rounds, delta, budget=budget), budget)

  def stop_before(self, round: int) -> bool:
    """Returns whether round `round` (from 1) would exceed the budget.

    Raises:
      ValueError: the round was not planned, so that its epsilon is not known.
    """
    validate.integer(at_most=self.planned, round=round)
    return round > self.allowed

  def charge(self, round: int) -> None:
    """Charges the rounds up to `round` (from 1), before they run; a smaller number changes nothing.

    Raises:
      ValueError: the round was not planned, or exceeds the budget.
    """
    if self.stop_before(round):
      raise ValueError(f'round must be at most {self.allowed} within the budget, got {round!r}.')
    self.charged = max(self.charged, round)

  def finish(self, round: int) -> None:
    """Notes that the records of `round` rounds are written.

    Raises:
      ValueError: a round that was not charged.
    """
    self.done = validate.integer(0, self.charged, round=round)

  def guarantee(self, round: int | None = None) -> Guarantee:
    """Returns the statement after `round` rounds (by default those charged)."""
    number = self.charged if round is None else round
    return self.entry.guarantee(validate.integer(0, self.planned, round=number))

  def metrics(self, round: int) -> dict[str, float]:
    """Returns {'epsilon', 'delta'} after `round` rounds."""
    stated = self.guarantee(round)
    return {'epsilon': stated.epsilon, 'delta': stated.delta}

  def to_dict(self) -> dict[str, Any]:
    """Returns the ledger as plain data for JSON."""
    return {
      'version': VERSION,
      'kind': 'central',
      'charged': self.charged,
      'done': self.done,
      'budget': self.budget,
      'allowed': self.allowed,
      'guarantee': describe(self.guarantee()),
      'logged losses and norms': NOT_COVERED,
      'entry': entry_to_dict(self.entry),
    }

  @classmethod
  def from_dict(cls, data: Mapping[str, Any]) -> 'Ledger':
    """Returns the ledger whose `to_dict` gave the data, bit for bit."""
    return cls(entry_from_dict(data['entry']), data['budget'], data['charged'], data['done'])

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes the ledger; a reader sees the old one or the new one, never a mixture."""
    write(path, self.to_dict())

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> 'Ledger':
    """Returns the ledger of a file.

    Raises:
      ValueError: the file is not a complete ledger of this version.
    """
    return read(path, 'central', cls.from_dict)

  def resume(self, path: str | os.PathLike[str]) -> 'Ledger':
    """Returns this plan with what a saved ledger of the same run has charged, and its accountant.

    Raises:
      ValueError: the file is no ledger, or one with another noise, sampler, delta, or accountant
        than the one asked for.
    """
    saved = Ledger.load(path)
    entry = resumed(saved.entry, self.entry, path, budget=self.budget)
    return Ledger(entry, self.budget, saved.charged, saved.done)


def ahead(
  layer: str,
  made: Claim,
  rounds: int,
  delta: float,
  every: int = 1,
  budget: float | None = None,
) -> Entry:
  """Returns the entry of a claim, with epsilon after each `every`-th of `rounds` rounds.

  Where only some of the values are exact, that of the last round within the budget is.
  """
  path = made.trajectory(rounds, delta, every=every, budget=budget)
  return Entry(
    layer,
    made,
    delta,
    tuple(path.epsilon[every - 1 :: every].tolist()),
    tuple(path.delta[every - 1 :: every].tolist()),
  )


def within(entry: Entry, budget: float | None, what: str) -> int:
  """Returns how many rounds or participations the budget allows; `ValueError` if not one."""
  if budget is None:
    return len(entry.epsilon)
  if entry.epsilon[0] > budget:
    raise ValueError(
      f'budget must be at least {entry.epsilon[0]:.4g}, what one {what} costs, got {budget!r}.'
    )
  return sum(value <= budget for value in entry.epsilon)


def describe(stated: Guarantee) -> dict[str, Any]:
  """Returns a guarantee and its level as plain data."""
  return {
    **stated._asdict(),
    'epsilon': finite(stated.epsilon),
    'notes': list(stated.notes),
    'level': stated.level,
  }


def finite(value: float) -> float | None:
  """Returns the value, or None for infinity, which JSON does not have."""
  return value if math.isfinite(value) else None


def entry_to_dict(item: Entry) -> dict[str, Any]:
  """Returns an entry as plain data; the mechanism is named by the path of its class."""
  made = item.claim
  return {
    'layer': item.layer,
    'sampling': None if made.sampling is None else dataclasses.asdict(made.sampling),
    'mechanism': {'class': path_of(made.mechanism), **dataclasses.asdict(made.mechanism)},
    'bound': None if made.bound is None else [finite(value) for value in made.bound],
    'adjacency': made.adjacency,
    'accountant': made.accountant,
    'truncated': made.truncated,
    'trust': made.trust,
    'unit': made.unit,
    'notes': list(made.notes),
    'target_delta': item.target_delta,
    'epsilon': [finite(value) for value in item.epsilon],
    'delta': list(item.delta),
  }


def _known(values: Iterable[float | None]) -> tuple[float, ...]:
  """Returns the values with infinity for None, the reverse of `finite`."""
  return tuple(math.inf if value is None else value for value in values)


def entry_from_dict(data: Mapping[str, Any]) -> Entry:
  """Returns the entry whose `entry_to_dict` gave the data."""
  fields = dict(data['mechanism'])
  made = Claim(
    None if data['sampling'] is None else Draws(**data['sampling']),
    mechanisms.find(fields.pop('class'))(**fields),
    data['adjacency'],
    data['accountant'],
    data['truncated'],
    None if data['bound'] is None else Bound(*_known(data['bound'])),
    data['trust'],
    data['unit'],
    tuple(data['notes']),
  )
  return Entry(
    data['layer'], made, data['target_delta'], _known(data['epsilon']), tuple(data['delta'])
  )


def resumed(
  saved: Entry,
  planned: Entry,
  path: str | os.PathLike[str],
  every: int = 1,
  budget: float | None = None,
) -> Entry:
  """Returns the entry of a run that goes on, as it was accounted for so far.

  An accountant that 'auto' chose gives way to that of the saved entry: what was stated stays true.

  Args:
    saved: entry of the saved ledger.
    planned: entry of the whole run as it is planned now.
    path: file of the saved ledger, for messages.
    every: rounds of the claim between two values of epsilon.
    budget: the epsilon not to exceed, or None.

  Raises:
    ValueError: the saved entry accounts for another run.
  """
  made = planned.claim
  if made.chosen:
    old = saved.claim
    made = dataclasses.replace(made, accountant=old.accountant, truncated=old.truncated)
  check_same(saved, planned._replace(claim=made), path)
  if len(saved.epsilon) == len(planned.epsilon):
    planned = saved._replace(claim=made)
  elif made != planned.claim:
    planned = ahead(
      planned.layer, made, len(planned.epsilon) * every, planned.target_delta, every, budget
    )
  return planned.noting(saved, planned)


def check_same(saved: Entry, planned: Entry, path: str | os.PathLike[str]) -> None:
  """Raises `ValueError` unless a saved entry accounts for the same run as the planned one."""
  for name in ('layer', 'claim', 'target_delta'):
    old, new = saved._asdict()[name], planned._asdict()[name]
    if old != new:
      raise ValueError(f'{path} must be the ledger of this run, with {name} {new!r}, got {old!r}.')


def write(path: str | os.PathLike[str], data: Mapping[str, Any], mode: int = 0o666) -> None:
  """Writes JSON atomically: to a file beside `path`, then renamed, both on the disk on return.

  Args:
    path: of the file.
    data: what JSON has, without NaN and infinity.
    mode: permissions of the file from its first byte on, less the umask.
  """
  path = Path(path)
  part = path.with_name(path.name + '.part')
  part.unlink(missing_ok=True)  # one of a killed process keeps the mode that it was made with
  with open(
    part, 'x', encoding='utf-8', opener=lambda name, flags: os.open(name, flags, mode)
  ) as f:
    json.dump(data, f, indent=1, allow_nan=False)
    f.write('\n')
    f.flush()
    os.fsync(f.fileno())
  part.replace(path)
  _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
  """Puts the names in a folder on the disk: until then a power cut may undo a rename."""
  if os.name != 'posix':  # elsewhere folders cannot be opened
    return
  held = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(held)
  finally:
    os.close(held)


def read(path: str | os.PathLike[str], kind: str, parse: Callable[[Any], T]) -> T:
  """Returns what `parse` makes of a ledger file of one kind; `ValueError` if it is no such file."""
  try:
    data = json.loads(Path(path).read_text(encoding='utf-8'))
    if data['version'] != VERSION or data['kind'] != kind:
      raise ValueError(f'version {data["version"]!r}, kind {data["kind"]!r}')
    return parse(data)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{path} must be a whole {kind} ledger of version {VERSION}, got {error}.'
    ) from error
