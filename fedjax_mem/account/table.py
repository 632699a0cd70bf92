"""The rows that `fedjax-mem privacy epsilon|calibrate|plan` prints: plain data, no printing.

A row is a dict of column -> number or text, in the order of the columns.
"""

import warnings
from collections.abc import Iterable
from typing import Any, TypeVar

from fedjax_mem import mechanisms
from fedjax_mem.account import calibrate, events
from fedjax_mem.account.accountant import Options, claim
from fedjax_mem.account.guarantee import Guarantee
from fedjax_mem.core import Draws, IncompatibleStages, Mechanism, validate

COMMANDS = ('epsilon', 'calibrate', 'plan')
TARGETS = (1.0, 2.0, 5.0, 10.0)

T = TypeVar('T')
Row = dict[str, Any]


def privacy_table(
  command: str,
  *,
  population: int,
  delta: float,
  cohort: float | None = None,
  rounds: int | None = None,
  noise_multiplier: float | None = None,
  target_epsilon: float | None = None,
  scheme: str = 'poisson',
  mechanism: str = 'gaussian',
  adjacency: str | None = None,
  accountant: str = 'auto',
) -> list[Row]:
  """Returns the rows of one of the privacy commands.

  'epsilon': epsilon of a run, by each accountant and adjacency that supports it.
  'calibrate': the one of noise_multiplier, rounds and cohort that is None, from the other two.
  'plan': noise for a range of targets and cohorts up to the population, with `noise_share`, the
    standard deviation of the noise in the average update over the clip norm: the price in utility.

  >>> run = {'population': 3383, 'cohort': 120, 'rounds': 100, 'delta': 1e-5}
  >>> row = privacy_table('calibrate', target_epsilon=2.0, **run)[0]
  >>> round(row['noise_multiplier'], 3), round(row['epsilon'], 3), row['capacity']
  (1.196, 2.0, 194)

  Args:
    command: one of `COMMANDS`.
    population: N, clients.
    delta: target, in (0, 1).
    cohort: clients expected in a cohort, in (0, N].
    rounds: rounds of the whole run.
    noise_multiplier: standard deviation of the noise over the clip norm, > 0.
    target_epsilon: budget; for 'plan', None stands for `TARGETS`.
    scheme: 'poisson', 'without_replacement' or 'cyclic'.
    mechanism: a name of `mechanisms` that needs only a noise multiplier, or 'package.module:Class'.
    adjacency: one of `events.ADJACENCIES`, or None.
    accountant: 'auto', 'rdp' or 'pld'.

  Raises:
    ValueError: a number is out of range or missing, or one too many is given.
    IncompatibleStages: the pair has no valid event.
  """
  validate.one_of(COMMANDS, command=command)
  validate.integer(population=population)
  validate.one_of(events.SCHEMES, scheme=scheme)
  kind = _kind(mechanism)
  how: Options = {'adjacency': adjacency, 'accountant': accountant}
  if command == 'calibrate':
    target = _given(command, target_epsilon=target_epsilon)
    return _calibrate(
      population, delta, cohort, rounds, noise_multiplier, target, scheme, kind, how
    )
  cohort, rounds = _given(command, cohort=cohort), _given(command, rounds=rounds)
  if command == 'epsilon':
    noise = kind(_given(command, noise_multiplier=noise_multiplier))
    sampling = _sampling(scheme, population, cohort, rounds, delta)
    return _epsilon(sampling, noise, rounds, delta, how)
  targets = TARGETS if target_epsilon is None else (target_epsilon,)
  return _plan(population, cohort, rounds, delta, targets, scheme, kind, how)


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


def _sampling(
  scheme: str, population: int, cohort: float, rounds: int, delta: float, epsilon: float = 10.0
) -> Draws:
  """Returns the sampling of a cohort; a Poisson cohort gets the capacity that its run needs."""
  validate.positive(cohort=cohort)
  if cohort > population:
    raise ValueError(
      f'cohort must be at most the population of {population} (a sampling rate of at most 1), got '
      f'{cohort!r}.'
    )
  return calibrate.resize(
    Draws(scheme, population, cohort, population), cohort, rounds, delta, epsilon
  )


def _row(
  sampling: Any, mechanism: Mechanism, stated: Guarantee, target: float | None = None
) -> Row:
  aim = {} if target is None else {'target': target}
  return {
    **aim,
    'epsilon': stated.epsilon,
    'delta': stated.delta,
    'level': stated.level,
    'accountant': stated.accountant,
    'adjacency': stated.adjacency,
    'sampling': sampling.scheme,
    'population': sampling.population,
    'cohort': sampling.expected,
    'capacity': sampling.capacity,
    'rounds': stated.rounds,
    'mechanism': mechanisms.name(mechanism),
    'noise_multiplier': mechanism.noise_multiplier,
    'noise': stated.noise,
    'noise_share': mechanism.noise_multiplier / sampling.expected,
  }


def _epsilon(
  sampling: Draws, mechanism: Mechanism, rounds: int, delta: float, how: Options
) -> list[Row]:
  """Returns a row for each accountant and adjacency that holds, the default ones first."""
  first = claim(sampling, mechanism, rounds=rounds, delta=delta, **how)
  rows = [_row(sampling, mechanism, first.guarantee(rounds, delta))]
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
          rows.append(_row(sampling, mechanism, made.guarantee(rounds, delta)))
  return rows


def _calibrate(
  population: int,
  delta: float,
  cohort: float | None,
  rounds: int | None,
  noise: float | None,
  target: float,
  scheme: str,
  kind: type[Mechanism],
  how: Options,
) -> list[Row]:
  """Returns the row of the run, with the number that was None."""
  if noise is None and cohort is not None and rounds is not None:
    sampling = _sampling(scheme, population, cohort, rounds, delta, target)
    found = calibrate.noise_multiplier(target, delta, sampling, rounds, kind(1.0), **how)
  elif cohort is None and rounds is not None and noise is not None:
    template = Draws(scheme, population, 1, population)
    found = calibrate.cohort(target, delta, template, kind(noise), rounds, **how)
  elif rounds is None and cohort is not None and noise is not None:
    # The capacity depends on the rounds, which are not known: it is that of the longest run tried.
    sampling = _sampling(scheme, population, cohort, 1_000_000, delta, target)
    found = calibrate.rounds(target, delta, sampling, kind(noise), **how)
  else:
    named = {'cohort': cohort, 'rounds': rounds, 'noise_multiplier': noise}
    raise ValueError(
      f'exactly one of cohort, rounds and noise_multiplier must be left out, got {named!r}.'
    )
  return [_row(found.sampling, found.mechanism, found.guarantee, target)]


def _plan(
  population: int,
  cohort: float,
  rounds: int,
  delta: float,
  targets: Iterable[float],
  scheme: str,
  kind: type[Mechanism],
  how: Options,
) -> list[Row]:
  """Returns a row for each target and for cohorts of 1, 4 and 16 times the one given."""
  sizes = sorted({min(population, cohort * factor) for factor in (1, 4, 16)})
  rows = []
  for target in targets:
    for size in sizes:
      sampling = _sampling(scheme, population, size, rounds, delta, target)
      found = calibrate.noise_multiplier(target, delta, sampling, rounds, kind(1.0), **how)
      rows.append(_row(found.sampling, found.mechanism, found.guarantee, target))
  return rows
