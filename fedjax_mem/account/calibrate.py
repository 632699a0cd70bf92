"""Calibration of a private run: its noise, its rounds or its cohort, each from the other two.

Under the accountant 'auto' the number is found by RDP, which is cheap, and from there by PLD. The
better of the two is taken, and stated by the accountant whose epsilon is less.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar, Unpack

from fedjax_mem.account import events, poisson
from fedjax_mem.account.accountant import ClaimOptions, claim
from fedjax_mem.account.claims import Claim
from fedjax_mem.account.guarantee import Guarantee
from fedjax_mem.account.search import largest
from fedjax_mem.core import Draws, IncompatibleStages, Mechanism, validate
from fedjax_mem.mechanisms import Gaussian

T = TypeVar('T')
Point = tuple[Draws | None, Mechanism, int]  # sampling, mechanism and rounds of a run
_LEAST_NOISE, _MOST_NOISE, _LEAST_EPSILON = 1e-3, 1e9, 1e-12


class Calibrated(NamedTuple):
  """A run within its budget.

  Attributes:
    mechanism: with the noise multiplier of the run.
    sampling: with the cohort of the run.
    rounds: number of rounds of the run.
    guarantee: the guarantee at its end; its epsilon is at most the target.
  """

  mechanism: Mechanism
  sampling: Draws | None
  rounds: int
  guarantee: Guarantee


def noise_multiplier(
  target_epsilon: float,
  delta: float,
  sampling: Draws | None,
  rounds: int,
  mechanism: Mechanism | None = None,
  **how: Unpack[ClaimOptions],
) -> Calibrated:
  """Returns the run with the least noise whose epsilon is at most the target.

  Args:
    target_epsilon: budget of the whole run, > 0.
    delta: target, in (0, 1).
    sampling: how the cohort is drawn; None: noise that each client adds to its own message.
    rounds: rounds of the whole run.
    mechanism: the noise, whose multiplier is ignored; by default Gaussian.
    **how: `bound`, `adjacency` and `accountant`, as in `accountant.claim`.

  Raises:
    ValueError: a number is out of range, or no noise is enough.
    IncompatibleStages: the pair has no valid event.
  """
  validate.positive(target_epsilon=target_epsilon)
  mechanism = mechanism or Gaussian(1.0)

  def solve(made: Claim, guess: float | None) -> float:
    def epsilon(noise: float) -> float:
      noisy = made.mechanism.with_multiplier(noise)
      return dataclasses.replace(made, mechanism=noisy).epsilon(rounds, delta)

    if guess is None and made.accountant == 'pld':  # RDP is cheap and close, where it has an event
      by_rdp = dataclasses.replace(made, accountant='rdp', truncated=False)
      guess = solve(by_rdp, None) if by_rdp.supported(rounds) else None
    tolerance = 3e-6 if made.accountant == 'pld' else 1e-8
    return _least_noise(epsilon, target_epsilon, guess or 1.0, tolerance)

  def at(noise: float) -> Point:
    return sampling, mechanism.with_multiplier(noise), rounds

  return _settle(solve, at, min, sampling, mechanism, rounds, delta, how)


def _least_noise(
  epsilon: Callable[[float], float], target: float, guess: float, tolerance: float
) -> float:
  """Returns the least noise with epsilon(noise) <= target, up to a relative tolerance."""
  low = high = guess
  step = 1.25
  while epsilon(high) > target:
    low, high, step = high, high * step, step**2
    if high > _MOST_NOISE:
      raise ValueError(f'target_epsilon must be within reach of some noise, got {target!r}.')
  while low == high or epsilon(low) <= target:
    high, low, step = low, low / step, step**1.5
    if low < _LEAST_NOISE:
      return high

  from scipy import optimize

  def above(log_noise: float) -> float:  # nearly a straight line
    return math.log(max(epsilon(math.exp(log_noise)), _LEAST_EPSILON) / target)

  root = optimize.brentq(above, math.log(low), math.log(high), xtol=tolerance)
  for margin in (0.0, 1.0, 2.0, 10.0):
    noise = math.exp(root + margin * tolerance)
    if epsilon(noise) <= target:
      return noise
  return high


def rounds(
  target_epsilon: float,
  delta: float,
  sampling: Draws,
  mechanism: Mechanism,
  most: int = 1_000_000,
  **how: Unpack[ClaimOptions],
) -> Calibrated:
  """Returns the longest run whose epsilon is at most the target, of at most `most` rounds.

  Args and raises: as `noise_multiplier`; and `ValueError` if the first round exceeds the budget.
  """
  validate.positive(target_epsilon=target_epsilon)
  validate.integer(most=most)
  most = min(most, mechanism.horizon(sampling) or most)

  def solve(made: Claim, guess: int | None) -> int:
    first = made.epsilon(1, delta)
    if first > target_epsilon:
      raise ValueError(
        f'target_epsilon must be at least {first:.4g}, what one round costs, got '
        f'{target_epsilon!r}; add noise or select fewer clients.'
      )
    return largest(lambda r: made.epsilon(r, delta) <= target_epsilon, most, guess or 1)

  return _settle(solve, lambda r: (sampling, mechanism, r), max, sampling, mechanism, 1, delta, how)


def cohort(
  target_epsilon: float,
  delta: float,
  sampling: Draws,
  mechanism: Mechanism,
  rounds: int,
  **how: Unpack[ClaimOptions],
) -> Calibrated:
  """Returns the run with the largest cohort whose epsilon is at most the target.

  Args:
    target_epsilon: budget of the whole run, > 0.
    delta: target, in (0, 1).
    sampling: gives the scheme and the population; the cohort is found, and its capacity with it.
    mechanism: the noise, with its multiplier.
    rounds: rounds of the whole run.
    **how: as in `accountant.claim`.

  Raises:
    ValueError: a number is out of range, or a cohort of one exceeds the budget.
    IncompatibleStages: the pair has no valid event.
  """
  validate.positive(target_epsilon=target_epsilon)

  def solve(name: str, guess: int | None) -> int:
    def epsilon(size: int) -> float:
      sized = resize(sampling, size, rounds, delta, target_epsilon)
      made = claim(sized, mechanism, rounds=rounds, delta=delta, **(how | {'accountant': name}))
      return made.epsilon(rounds, delta)

    if epsilon(1) > target_epsilon:
      raise ValueError(
        f'target_epsilon must be at least {epsilon(1):.4g}, what a cohort of one costs in {rounds} '
        f'rounds, got {target_epsilon!r}; add noise or run fewer rounds.'
      )
    return largest(lambda size: epsilon(size) <= target_epsilon, sampling.population, guess or 1)

  size = _best(solve, max, how)
  sized = resize(sampling, size, rounds, delta, target_epsilon)
  found = claim(sized, mechanism, rounds=rounds, delta=delta, **how)
  return Calibrated(mechanism, found.sampling, rounds, found.guarantee(rounds, delta))


def resize(
  sampling: Draws, expected: float, rounds: int, delta: float, epsilon: float = 10.0
) -> Draws:
  """Returns the sampling with another cohort, and the capacity and `min_sep` that it implies."""
  if sampling.scheme == 'poisson':
    rows = poisson.capacity(sampling.population, expected, rounds, delta, epsilon)
    return dataclasses.replace(sampling, expected=expected, capacity=rows)
  apart = sampling.population // int(expected) if sampling.scheme == 'cyclic' else 1
  return dataclasses.replace(sampling, expected=expected, capacity=int(expected), min_sep=apart)


def _best(solve: Callable[[str, T | None], T], better: Callable[[T, T], T], how: ClaimOptions) -> T:
  """Returns the better of the solutions by each accountant, RDP first, or by the one asked for.

  Args:
    solve: (accountant, guess) -> solution; the guess is the solution of the accountant before.
    better: of two solutions.
    how: options of the claim.

  Raises:
    ValueError: there is no solution; the reason is that of the last accountant that has an event.
  """
  asked = how.get('accountant', 'auto')
  found, errors = None, []
  for name in events.ACCOUNTANTS if asked == 'auto' else (asked,):
    try:
      other = solve(name, found)
    except ValueError as error:
      errors.append(error)
      continue
    found = other if found is None else better(found, other)
  if found is None:
    raise next((x for x in errors[::-1] if not isinstance(x, IncompatibleStages)), errors[0])
  return found


def _settle(
  solve: Callable[[Claim, T | None], T],
  at: Callable[[T], Point],
  better: Callable[[T, T], T],
  sampling: Draws | None,
  mechanism: Mechanism,
  first_rounds: int,
  delta: float,
  how: ClaimOptions,
) -> Calibrated:
  """Returns the solution, found as if no cohort overflowed, or by PLD for a truncated cohort.

  So the claim does not change during the search.
  """
  roomy = sampling
  if sampling is not None:
    roomy = dataclasses.replace(sampling, capacity=sampling.population)

  def one(name: str, guess: T | None) -> T:
    asked: ClaimOptions = {**how, 'accountant': name}
    start = claim(roomy, mechanism, rounds=first_rounds, delta=delta, **asked)
    found = solve(dataclasses.replace(start, sampling=sampling), guess)
    settled = _claim_at(at(found), delta, asked)
    return solve(settled, found) if settled.truncated else found

  point = at(_best(one, better, how))
  settled = _claim_at(point, delta, how)
  return Calibrated(point[1], sampling, point[2], settled.guarantee(point[2], delta))


def _claim_at(point: Point, delta: float, how: ClaimOptions) -> Claim:
  sampling, mechanism, number = point
  return claim(sampling, mechanism, rounds=number, delta=delta, **how)
