"""The rows that `fedjax-mem privacy epsilon|calibrate|plan` prints: plain data, no printing.

A row is a dict of column -> number or text, in the order of the columns.
"""

import warnings
from typing import Any

from fedjax_mem import mechanisms
from fedjax_mem.account import calibrate, events
from fedjax_mem.account.accountant import Guarantee, claim
from fedjax_mem.core import Draws, IncompatibleStages, Mechanism, validate

COMMANDS = ('epsilon', 'calibrate', 'plan')
TARGETS = (1.0, 2.0, 5.0, 10.0)

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

  'epsilon': what a run costs, by each accountant and adjacency that supports it.
  'calibrate': the one of noise_multiplier, rounds and cohort that is None, from the other two.
  'plan': noise for a range of targets and cohorts up to the population, with `noise_share`, the
    noise's standard deviation in the average update as a part of the clip norm: what is paid.

  Args:
    command: one of `COMMANDS`.
    population: N, clients.
    delta: target, in (0, 1).
    cohort: clients expected in a cohort.
    rounds: of the whole run.
    noise_multiplier: standard deviation over clip norm.
    target_epsilon: budget; 'plan' without one takes the bounds of the privacy levels.
    scheme: 'poisson', 'without_replacement' or 'cyclic'.
    mechanism: 'gaussian', 'laplace', 'discrete_gaussian', or 'package.module:Class' of one whose
      multiplier says all.
    adjacency: one of `events.ADJACENCIES`, or None.
    accountant: 'auto', 'rdp' or 'pld'.

  Raises:
    ValueError: a number is out of range, missing or too many.
    IncompatibleStages: the pair has no valid event.
  """
  validate.one_of(COMMANDS, command=command)
  validate.integer(population=population)
  validate.one_of(events.SCHEMES, scheme=scheme)
  kind = _kind(mechanism)
  how = {'adjacency': adjacency, 'accountant': accountant}
  if command == 'calibrate':
    given = {'cohort': cohort, 'rounds': rounds, 'noise_multiplier': noise_multiplier}
    return _calibrate(population, delta, given, target_epsilon, scheme, kind, how)
  _require(command, cohort=cohort, rounds=rounds)
  if command == 'epsilon':
    _require(command, noise_multiplier=noise_multiplier)
    noise = kind(noise_multiplier or 0.0)
    sampling = _sampling(scheme, population, cohort, rounds, delta)
    return _epsilon(sampling, noise, rounds, delta, how)
  targets = TARGETS if target_epsilon is None else (target_epsilon,)
  return _plan(population, cohort, rounds, delta, targets, scheme, kind, how)


def _kind(mechanism: str) -> type[Mechanism]:
  """Returns the class of a mechanism that is settled by its multiplier."""
  kind = mechanisms.find(mechanism, fresh=True)
  try:
    kind(1.0)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'mechanism must be one that its noise_multiplier settles, got {mechanism!r}: {error}'
    ) from error
  return kind


def _require(command: str, **named: Any) -> None:
  missing = [name for name, value in named.items() if value is None]
  if missing:
    raise ValueError(f'{missing[0]} must be given for {command!r}, got None.')


def _sampling(scheme, population, cohort, rounds, delta, epsilon=10.0) -> Draws:
  """Returns the sampling of a cohort; a Poisson cohort gets the rows that its run needs."""
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
    'noise_share': mechanism.noise_multiplier / sampling.expected,
  }


def _epsilon(sampling, mechanism, rounds, delta, how) -> list[Row]:
  """Returns a row for each accountant and adjacency that holds, those of the default first."""
  first = claim(sampling, mechanism, rounds=rounds, delta=delta, **how)
  rows = [_row(sampling, mechanism, first.guarantee(rounds, delta))]
  names = events.ACCOUNTANTS if how['accountant'] == 'auto' else (how['accountant'],)
  relations = events.ADJACENCIES if how['adjacency'] is None else (how['adjacency'],)
  done = {(first.accountant, first.adjacency)}
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # given once, with the first row
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


def _calibrate(population, delta, named, target, scheme, kind, how) -> list[Row]:
  """Returns the row of the run with the one number that is None found."""
  _require('calibrate', target_epsilon=target)
  cohort, rounds, noise = named['cohort'], named['rounds'], named['noise_multiplier']
  missing = [name for name, value in named.items() if value is None]
  if len(missing) != 1:
    raise ValueError(
      f'exactly one of cohort, rounds and noise_multiplier must be left out, got {named!r}.'
    )
  if missing == ['noise_multiplier']:
    sampling = _sampling(scheme, population, cohort, rounds, delta, target)
    found = calibrate.noise_multiplier(target, delta, sampling, rounds, kind(1.0), **how)
  elif missing == ['cohort']:
    template = Draws(scheme, population, 1, population)
    found = calibrate.cohort(target, delta, template, kind(noise), rounds, **how)
  else:
    # The rows depend on the rounds, which are not known: those of the longest run that is tried.
    sampling = _sampling(scheme, population, cohort, 1_000_000, delta, target)
    found = calibrate.rounds(target, delta, sampling, kind(noise), **how)
  return [_row(found.sampling, found.mechanism, found.guarantee, target)]


def _plan(population, cohort, rounds, delta, targets, scheme, kind, how) -> list[Row]:
  """Returns a row for each target and for cohorts of 1, 4 and 16 times the one given."""
  sizes = sorted({min(population, cohort * factor) for factor in (1, 4, 16)})
  rows = []
  for target in targets:
    for size in sizes:
      sampling = _sampling(scheme, population, size, rounds, delta, target)
      found = calibrate.noise_multiplier(target, delta, sampling, rounds, kind(1.0), **how)
      rows.append(_row(found.sampling, found.mechanism, found.guarantee, target))
  return rows
