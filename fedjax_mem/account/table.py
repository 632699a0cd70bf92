"""The rows that `fedjax-mem privacy epsilon|calibrate|plan` prints: plain data, no printing.

A row is a dict of column -> number or text, in the order of the columns.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from fedjax_mem import mechanisms
from fedjax_mem.account import calibrate, events
from fedjax_mem.account.accountant import Options, claim
from fedjax_mem.account.guarantee import Guarantee
from fedjax_mem.core import Draws, IncompatibleStages, Mechanism, validate

COMMANDS = ('epsilon', 'calibrate', 'plan')
TARGETS = (1.0, 2.0, 5.0, 10.0)

T = TypeVar('T')
Row = dict[str, Any]


class _Cohorts(NamedTuple):
  """How cohorts are drawn: N clients and the size of a cohort, or the rate of Poisson draws alone.

  Attributes:
    scheme: one of `events.SCHEMES`.
    population: N, clients; 1 where only the rate is known, since epsilon depends on nothing else.
    cohort: clients expected in a cohort; None: to be found.
    by_rate: whether `cohort` is the rate.
  """

  scheme: str
  population: int
  cohort: float | None
  by_rate: bool

  def sampling(
    self, rounds: int, delta: float, epsilon: float = 10.0, size: float | None = None
  ) -> Draws:
    """Returns the sampling of a cohort; a Poisson cohort gets the capacity that its run needs."""
    cohort = validate.positive(cohort=self.cohort if size is None else size)
    if self.by_rate:
      return Draws('poisson', 1, cohort, 1)
    if cohort > self.population:
      raise ValueError(
        f'cohort must be at most the population of {self.population} (a sampling rate of at most '
        f'1), got {cohort!r}.'
      )
    drawn = Draws(self.scheme, self.population, cohort, self.population)
    return calibrate.resize(drawn, cohort, rounds, delta, epsilon)


def _cohorts(
  command: str, scheme: str, population: int | None, cohort: float | None, rate: float | None
) -> _Cohorts:
  """Returns how cohorts are drawn, or raises `ValueError` for arguments that do not go together."""
  validate.one_of(events.SCHEMES, scheme=scheme)
  if rate is None:
    if population is None:
      raise ValueError(f'population must be given for {command!r}, or sampling_rate, got None.')
    return _Cohorts(scheme, validate.integer(population=population), cohort, False)
  if scheme != 'poisson':
    raise ValueError(
      f'sampling_rate must be left out for the scheme {scheme!r}, whose cost does not follow from '
      f'a rate: give population and cohort, got {rate!r}.'
    )
  if population is not None or cohort is not None:
    raise ValueError(
      'sampling_rate must be given in place of population and cohort, got '
      f'{rate!r} with {population!r} and {cohort!r}.'
    )
  return _Cohorts(scheme, 1, validate.probability(sampling_rate=rate), True)


def sampling_of(row: Row) -> Draws:
  """Returns the sampling of a row."""
  if 'sampling_rate' in row:
    return Draws('poisson', 1, row['sampling_rate'], 1)
  cohort, population = row['cohort'], row['population']
  apart = int(population // cohort) if row['sampling'] == 'cyclic' else 1
  return Draws(row['sampling'], population, cohort, row['capacity'], apart)


def privacy_table(
  command: str,
  *,
  delta: float,
  population: int | None = None,
  cohort: float | None = None,
  sampling_rate: float | None = None,
  rounds: int | None = None,
  noise_multiplier: float | None = None,
  target_epsilon: float | None = None,
  scheme: str = 'poisson',
  mechanism: str = 'gaussian',
  adjacency: str | None = None,
  accountant: str = 'auto',
  tell: Callable[[int, int], None] | None = None,
) -> list[Row]:
  """Returns the rows of one of the privacy commands.

  'epsilon': epsilon of a run, by each accountant and adjacency that supports it.
  'calibrate': the one of noise_multiplier, rounds and cohort that is None, from the other two.
  'plan': noise for a range of targets and cohorts up to the population. `noise_share` is the
    standard deviation of the noise in the average update over the clip norm: the price in utility.

  >>> run = {'population': 3383, 'cohort': 120, 'rounds': 100, 'delta': 1e-5}
  >>> row = privacy_table('calibrate', target_epsilon=2.0, **run)[0]
  >>> round(row['noise_multiplier'], 3), round(row['epsilon'], 3), row['accountant']
  (1.108, 2.0, 'PLD')

  Args:
    command: one of `COMMANDS`.
    delta: target, in (0, 1).
    population: N, clients.
    cohort: clients expected in a cohort, in (0, N].
    sampling_rate: of Poisson cohorts, in (0, 1], in place of population and cohort; none is cut.
    rounds: rounds of the whole run.
    noise_multiplier: standard deviation of the noise over the clip norm, > 0.
    target_epsilon: budget; for 'plan', None stands for `TARGETS`.
    scheme: 'poisson', 'without_replacement' or 'cyclic'.
    mechanism: a name of `mechanisms` that needs only a noise multiplier, or 'package.module:Class'.
    adjacency: as in `accountant.claim`.
    accountant: as in `accountant.claim`.
    tell: called with the number of rows done and of all, after each row of 'plan'.

  Raises:
    ValueError: a number is out of range or missing, or one too many is given.
    IncompatibleStages: the pair has no valid event.
  """
  validate.one_of(COMMANDS, command=command)
  who = _cohorts(command, scheme, population, cohort, sampling_rate)
  kind = _kind(mechanism)
  how: Options = {'adjacency': adjacency, 'accountant': accountant}
  if command == 'calibrate':
    target = _given(command, target_epsilon=target_epsilon)
    return _calibrate(who, delta, rounds, noise_multiplier, target, kind, how)
  _given(command, cohort=who.cohort)
  rounds = _given(command, rounds=rounds)
  if command == 'epsilon':
    noise = kind(_given(command, noise_multiplier=noise_multiplier))
    return _epsilon(who, noise, rounds, delta, how)
  return _plan(who, rounds, delta, target_epsilon, kind, how, tell)


def _kind(mechanism: str) -> type[Mechanism]:
  """Returns the class of a mechanism that needs only a noise multiplier."""
  kind = mechanisms.find(mechanism, fresh=True)
  try:
    kind(1.0)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'mechanism must be one that its noise_multiplier settles, got {mechanism!r}: {error}'
    ) from error
  return kind


def _given(command: str, **named: T | None) -> T:
  """Returns the one value, or raises `ValueError` where it is None."""
  ((name, value),) = named.items()
  if value is None:
    raise ValueError(f'{name} must be given for {command!r}, got None.')
  return value


def _row(
  who: _Cohorts,
  sampling: Any,
  mechanism: Mechanism,
  stated: Guarantee,
  target: float | None = None,
) -> Row:
  aim = {} if target is None else {'target': target}
  sizes = {
    'population': sampling.population,
    'cohort': sampling.expected,
    'capacity': sampling.capacity,
  }
  share = {'noise_share': mechanism.noise_multiplier / sampling.expected}
  return {
    **aim,
    'epsilon': stated.epsilon,
    'delta': stated.delta,
    'level': stated.level,
    'accountant': stated.accountant,
    'adjacency': stated.adjacency,
    'sampling': sampling.scheme,
    **({'sampling_rate': sampling.expected} if who.by_rate else sizes),
    'rounds': stated.rounds,
    'mechanism': mechanisms.name(mechanism),
    'noise_multiplier': mechanism.noise_multiplier,
    'noise': stated.noise,
    **({} if who.by_rate else share),
  }


def _epsilon(
  who: _Cohorts, mechanism: Mechanism, rounds: int, delta: float, how: Options
) -> list[Row]:
  """Returns a row for each accountant and adjacency that holds, the default ones first."""
  sampling = who.sampling(rounds, delta)
  first = claim(sampling, mechanism, rounds=rounds, delta=delta, **how)
  rows = [_row(who, sampling, mechanism, first.guarantee(rounds, delta))]
  names = events.ACCOUNTANTS if how['accountant'] == 'auto' else (how['accountant'],)
  relations = events.ADJACENCIES if how['adjacency'] is None else (how['adjacency'],)
  done = {(first.accountant, first.adjacency)}
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # the claim of the first row has given them
    for relation in relations:
      for name in names:
        try:
          made = claim(
            sampling, mechanism, rounds=rounds, delta=delta, adjacency=relation, accountant=name
          )
        except IncompatibleStages:
          continue
        if (made.accountant, made.adjacency) not in done:
          done.add((made.accountant, made.adjacency))
          rows.append(_row(who, sampling, mechanism, made.guarantee(rounds, delta)))
  return rows


def _calibrate(
  who: _Cohorts,
  delta: float,
  rounds: int | None,
  noise: float | None,
  target: float,
  kind: type[Mechanism],
  how: Options,
) -> list[Row]:
  """Returns the row of the run, with the number that was None."""
  cohort = who.cohort
  if noise is None and cohort is not None and rounds is not None:
    sampling = who.sampling(rounds, delta, target)
    found = calibrate.noise_multiplier(target, delta, sampling, rounds, kind(1.0), **how)
  elif cohort is None and rounds is not None and noise is not None:
    template = Draws(who.scheme, who.population, 1, who.population)
    found = calibrate.cohort(target, delta, template, kind(noise), rounds, **how)
  elif rounds is None and cohort is not None and noise is not None:
    # The capacity depends on the rounds, which are not known: it is that of the longest run tried.
    sampling = who.sampling(1_000_000, delta, target)
    found = calibrate.rounds(target, delta, sampling, kind(noise), **how)
  else:
    named = {'cohort': cohort, 'rounds': rounds, 'noise_multiplier': noise}
    if who.by_rate:  # the rate is given
      del named['cohort']
    raise ValueError(f'exactly one of {" and ".join(named)} must be left out, got {named!r}.')
  return [_row(who, found.sampling, found.mechanism, found.guarantee, target)]


def _plan(
  who: _Cohorts,
  rounds: int,
  delta: float,
  target: float | None,
  kind: type[Mechanism],
  how: Options,
  tell: Callable[[int, int], None] | None,
) -> list[Row]:
  """Returns a row for each target and for cohorts of 1, 4 and 16 times the one given."""
  sizes = sorted({min(who.population, (who.cohort or 0) * factor) for factor in (1, 4, 16)})
  points = [(aim, size) for aim in (TARGETS if target is None else (target,)) for size in sizes]
  rows = []
  for aim, size in points:
    sampling = who.sampling(rounds, delta, aim, size)
    found = calibrate.noise_multiplier(aim, delta, sampling, rounds, kind(1.0), **how)
    rows.append(_row(who, found.sampling, found.mechanism, found.guarantee, aim))
    if tell is not None:
      tell(len(rows), len(points))
  return rows
