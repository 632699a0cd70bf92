"""The records of a run, one a round, and which of their metrics a claim of privacy covers.

The sides of the round say it of their own metrics (`Covered`); what the runner adds is in a table
here, under names that no metric of a round may have. What nobody answers for is not covered.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from fedjax_mem.config.load import Config
from fedjax_mem.config.optimizers import learning_rate
from fedjax_mem.config.parts import Parts
from fedjax_mem.core import Draws
from fedjax_mem.engine import Simulation
from fedjax_mem.runner.ledgers import Ledgers
from fedjax_mem.runner.traffic import Traffic

# The clients' learning rate: a number, or a schedule round (from 0) -> number.
Rate = float | Callable[[Any], Any]
# Metrics of the round that are not recorded as they are.
_OWN = ('selected', 'ids', 'clients', 'examples', 'not_finite', 'finite', 'zeroed')
# What the runner adds, and whether a claim covers it. It does if it is public, planned before the
# run, or computed from released parameters and public examples.
_ADDED = {
  'round': True,
  'epsilon': True,
  'delta': True,
  'learning_rate': True,
  'clients': False,  # the cohort's realised size; with a secret draw it tells of the draw, too
  'examples': False,
  'zeroed': False,
  'not_finite': False,
  'bytes_up': False,  # of those who arrived
  'bytes_down': False,  # of those who were drawn
  'bytes': False,  # of both, over all rounds; only shown
  'seconds': False,  # how long training takes may depend on the data
  'covered': False,
}
# Facts of a local ledger: public if everyone can compute the draw.
_DRAWN = ('epsilon', 'delta', 'participations')
# Files of a run's folder, besides its records, that hold what a claim does not cover.
_FILES = (
  'checkpoints',
  'client_scores.json',
  'contributions.json',
  'contributions.png',
  'deploy.log',
  'ledger-*.json',
  'partition.png',
  'partition_dark.png',
  'pending.json',
)
# Facts of the manifest that are counted from what clients hold.
_FACTS = ('clients', 'client_state_bytes', 'equal_rows', 'examples', 'labels', 'time')


class Records:
  """Makes the records of rounds from the stacked metrics of a segment."""

  def __init__(
    self,
    sim: Simulation,
    traffic: Traffic,
    ledgers: Ledgers | None,
    owned: bool = False,
    rate: Rate | None = None,
  ):
    """Looks up what a claim covers.

    Args:
      sim: the compiled rounds.
      traffic: counts the bytes of their messages.
      ledgers: ledgers of their noise, or None.
      owned: whether test examples belong to clients: no noise covers scores on them.
      rate: the clients' learning rate, a number or a schedule round (from 0) -> number; None: it is
        not known.
    """
    self._owned, self._rate, self._most = owned, rate, sim.max_rounds
    self._traffic, self._ledgers, self._claims = traffic, ledgers, sim.claims
    layers = sim.setting.layers
    secret = any((x.name, side) in layers.secret for x, side, _ in layers.having(Draws))
    local = None if secret else ledgers
    self._covered = {
      *(name for name, covered in _ADDED.items() if covered),
      *(_named(name) for name in sim.covered),
      *_drawn(local),
    }
    self._seen: dict[str, bool] = {}  # metric -> whether it is covered

  def make(
    self, first: int, rows: Mapping[str, np.ndarray], seconds: float
  ) -> list[dict[str, Any]]:
    """Returns one record a round.

    Args:
      first: number of the first of these rounds, 1-based.
      rows: metric -> [R, ...], as `Simulation.run` returns them.
      seconds: time of the segment.
    """
    count = len(rows['clients'])
    traffic = self._traffic.records(rows)
    rates = self._rates(first - 1, count)
    records = []
    for i in range(count):
      record: dict[str, Any] = {'round': first + i}
      for name, x in rows.items():
        if name not in _OWN and not self._traffic.counts(name):
          record[_named(name)] = x[i].item()
      record |= {name: rows[name][i].item() for name in ('clients', 'examples')}
      record |= traffic[i]
      record |= {} if rates is None else {'learning_rate': rates[i]}
      bad = rows['not_finite'][i]
      if self._claims:  # then no client is named
        record |= {name: rows[name][i].item() for name in ('zeroed',) if name in rows}
      elif (bad >= 0).any():
        record['not_finite'] = sorted(bad[bad >= 0].tolist())
      record['seconds'] = seconds / count
      if self._ledgers:
        record |= self._ledgers.metrics(record['round'])
      records.append(record)
    return records

  def _rates(self, first: int, count: int) -> list[float] | None:
    """Returns the learning rate of each round, as the rounds use it."""
    if self._rate is None:
      return None
    return rates(self._rate, first, max(count, self._most))[:count]

  def score(
    self,
    record: dict[str, Any],
    scores: Mapping[str, float],
    of_clients: Mapping[str, float] | None = None,
  ) -> None:
    """Adds the scores on the test set, as 'test_<name>', and those on what clients hold out.

    The latter are of clients' examples, and no noise is in them: a claim does not cover them.
    """
    added = {_scored(name): value for name, value in scores.items()}
    record |= {**added, **(of_clients or {})}
    if not self._owned:
      self._covered |= set(added)

  def mark(self, record: dict[str, Any]) -> None:
    """Adds `covered`, the names of the metrics that the claim covers, if there is a claim."""
    if not self._claims:
      return
    known = {name: name in self._covered for name in record}
    self._seen |= known
    record['covered'] = [name for name, covered in known.items() if covered]

  def coverage(self) -> dict[str, Any]:
    """Returns the facts of the manifest about the metrics so far; none without a claim."""
    if not self._claims:
      return {}
    return coverage(self._seen)


def rates(rate: Rate, first: int, count: int) -> list[float]:
  """Returns the learning rate of each of `count` rounds, as the rounds use it.

  A schedule is computed by single operations, which are compiled for each count: a run asks for as
  many rounds every time.
  """
  if not callable(rate):
    return [rate] * count
  # On the device at once: one value a call would take longer than a small round.
  found: list[float] = np.asarray(rate(np.arange(first, first + count)), np.float32).tolist()
  return found


def of_run(config: Config, parts: Parts, sim: Simulation, ledgers: Ledgers | None) -> Records:
  """Returns what makes the records of a run."""
  owned = parts.data.test_clients is not None
  rate = learning_rate(config.client, config.rounds)
  return Records(sim, Traffic(sim), ledgers, owned, rate)


def coverage(seen: Mapping[str, bool]) -> dict[str, Any]:
  """Returns the facts of the manifest about what a claim covers.

  Args:
    seen: metric -> whether the claim covers it.
  """
  names = {
    said: [name for name, covered in seen.items() if covered is which]
    for said, which in (('covered', True), ('not covered', False))
  }
  return {'coverage': {**names, 'facts not covered': _FACTS, 'files not covered': _FILES}}


def check_names(
  metrics: Iterable[str],
  scores: Iterable[str],
  ledgers: Ledgers | None,
  of_clients: Iterable[str] = (),
) -> None:
  """Checks that records hold each metric of a round under a name that nothing else has.

  Args:
    metrics: names of the metrics of a round.
    scores: names of the scores on the test set.
    ledgers: ledgers of the run, or None.
    of_clients: names of the scores on what clients hold out.

  Raises:
    ValueError: a metric has the name of another, or of what the runner adds.
  """
  taken = {*_ADDED, *map(_scored, scores), *of_clients, *_drawn(ledgers)}
  for name in sorted(metrics):
    if name in _OWN or Traffic.counts(name):
      continue
    if _named(name) in taken:
      raise ValueError(
        'metrics of a round must have names that its record does not hold already, got '
        f'{_named(name)!r}.'
      )
    taken.add(_named(name))


def _drawn(ledgers: Ledgers | None) -> set[str]:
  """Returns the names of what local ledgers tell of a round."""
  return {f'{name}/{fact}' for name in (ledgers.local if ledgers else ()) for fact in _DRAWN}


def _scored(name: str) -> str:
  return f'test_{name}'


def _named(name: str) -> str:
  """Returns the name in records: the algorithm's metrics are the main ones, without a prefix."""
  return name.removeprefix('algorithm/')
