"""Calibration of a private run: its noise, its rounds or its cohort, each from the other two."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar, Unpack

from fedjax_mem.account import poisson
from fedjax_mem.account.accountant import Claim, ClaimOptions, claim
from fedjax_mem.account.guarantee import Guarantee
from fedjax_mem.core import Draws, Mechanism, validate
from fedjax_mem.mechanisms import Gaussian

T = TypeVar('T')
Point = tuple[Draws | None, Mechanism, int]  # sampling, mechanism and rounds of a run
_LEAST_NOISE, _MOST_NOISE = 1e-3, 1e9


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

  def solve(made: Claim) -> float:
    def epsilon(noise: float) -> float:
      noisy = made.mechanism.with_multiplier(noise)
      return dataclasses.replace(made, mechanism=noisy).epsilon(rounds, delta)

    guess = 1.0
    if made.accountant == 'pld':  # RDP is cheap and close, where it has an event
      by_rdp = dataclasses.replace(made, accountant='rdp', truncated=False)
      if by_rdp.supported(rounds):
        guess = solve(by_rdp)
    return _least_noise(epsilon, target_epsilon, guess, 1e-5 if made.accountant == 'pld' else 1e-8)

  def at(noise: float) -> Point:
    return sampling, mechanism.with_multiplier(noise), rounds

  return _settle(solve, at, sampling, mechanism, rounds, delta, how)


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

  root = optimize.brentq(
    lambda x: epsilon(math.exp(x)) - target, math.log(low), math.log(high), xtol=tolerance
  )
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

  def solve(made: Claim) -> int:
    first = made.epsilon(1, delta)
    if first > target_epsilon:
      raise ValueError(
        f'target_epsilon must be at least {first:.4g}, what one round costs, got '
        f'{target_epsilon!r}; add noise or select fewer clients.'
      )
    return _largest(lambda r: made.epsilon(r, delta) <= target_epsilon, most)

  return _settle(solve, lambda r: (sampling, mechanism, r), sampling, mechanism, 1, delta, how)


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

  def made(size: int) -> Claim:
    sized = resize(sampling, size, rounds, delta, target_epsilon)
    return claim(sized, mechanism, rounds=rounds, delta=delta, **how)

  if made(1).epsilon(rounds, delta) > target_epsilon:
    raise ValueError(
      f'target_epsilon must be at least {made(1).epsilon(rounds, delta):.4g}, what a cohort of one '
      f'costs in {rounds} rounds, got {target_epsilon!r}; add noise or run fewer rounds.'
    )
  size = _largest(lambda c: made(c).epsilon(rounds, delta) <= target_epsilon, sampling.population)
  found = made(size)
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


def _largest(fits: Callable[[int], bool], most: int) -> int:
  """Returns the largest k in [1, most] with fits(k), given fits(1) and that fits is monotone."""
  low, high = 1, 2
  while high <= most and fits(high):
    low, high = high, 2 * high
  high = min(high, most + 1)
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low


def _settle(
  solve: Callable[[Claim], T],
  at: Callable[[T], Point],
  sampling: Draws | None,
  mechanism: Mechanism,
  first_rounds: int,
  delta: float,
  how: ClaimOptions,
) -> Calibrated:
  """Returns the solution by one accountant, or by PLD if only a truncated cohort can be claimed.

  The first claim is made as if no cohort overflowed, so that the accountant does not change during
  the search.
  """
  roomy = sampling
  if sampling is not None:
    roomy = dataclasses.replace(sampling, capacity=sampling.population)
  start = claim(roomy, mechanism, rounds=first_rounds, delta=delta, **how)
  made = dataclasses.replace(start, sampling=sampling)
  found = solve(made)
  settled = _claim_at(at(found), delta, how)
  if settled.truncated:
    found = solve(settled)
    settled = dataclasses.replace(settled, mechanism=at(found)[1])
  return Calibrated(
    settled.mechanism, sampling, at(found)[2], settled.guarantee(at(found)[2], delta)
  )


def _claim_at(point: Point, delta: float, how: ClaimOptions) -> Claim:
  sampling, mechanism, number = point
  return claim(sampling, mechanism, rounds=number, delta=delta, **how)
