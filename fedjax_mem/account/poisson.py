"""Poisson cohorts in a fixed number of rows: the capacity, and what an overflow adds to delta.

A cohort is padded to its capacity; one that would not fit is cut, uniformly at random. The run
differs from the one that is accounted for only if some cohort overflows, which has probability tau
in the whole run. For neighbours D and D' and any event S

  P(cut run on D in S) <= P(run on D in S) + tau <= e^eps P(run on D' in S) + delta + tau
                       <= e^eps P(cut run on D' in S) + delta + (1 + e^eps) tau,

so an overflow adds (1 + e^eps) tau to delta, and not only tau.

Reference: Chua et al. (2024), arXiv 2411.04205, section 4 (truncated Poisson batches).
"""

import math

from fedjax_mem.core import Draws, validate

# The fraction of delta that overflowing cohorts may add to it.
SHARE = 0.01


def overflow(sampling: Draws | None, rounds: int) -> float:
  """Returns the probability that a cohort of the run does not fit (0 unless Poisson).

  Exact binomial tail, independent rounds. Nothing overflows where the capacity is the population.
  """
  if sampling is None or sampling.scheme != 'poisson' or sampling.capacity >= sampling.population:
    return 0.0
  rate = min(1.0, sampling.expected / sampling.population)
  from scipy import stats

  once = float(stats.binom.sf(sampling.capacity, sampling.population, rate))
  return 1.0 if once >= 1 else -math.expm1(rounds * math.log1p(-once))


def added_delta(sampling: Draws | None, rounds: int, epsilon: float) -> float:
  """Returns what overflowing cohorts add to delta, (1 + e^epsilon) P(overflow in the run)."""
  tau = overflow(sampling, rounds)
  if tau == 0:
    return 0.0
  return min(1.0, math.exp(min(math.log(tau) + float(epsilon), 0.0)) + tau)


def capacity(
  population: int, expected: float, rounds: int, delta: float, epsilon: float = 10.0
) -> int:
  """Returns the least rows of a Poisson cohort for which overflow adds at most 1% to delta.

  P(overflow in the whole run) is then at most delta / 100 as well.

  Args:
    population: N, clients.
    expected: clients expected in a cohort, N times the rate, in (0, N].
    rounds: of the whole run.
    delta: target, in (0, 1).
    epsilon: the largest that the run may reach, > 0; the default covers every useful guarantee.

  Raises:
    ValueError: a number is out of range.
  """
  validate.integer(population=population)
  validate.positive(expected=expected)
  validate.integer(rounds=rounds)
  validate.open_fraction(delta=delta)
  validate.positive(epsilon=epsilon)
  if expected > population:
    raise ValueError(f'expected must be at most the population of {population}, got {expected!r}.')

  def fits(rows: int) -> bool:
    sampling = Draws('poisson', population, expected, rows)
    return added_delta(sampling, rounds, epsilon) <= SHARE * delta

  low, high = max(1, min(population, math.ceil(expected))) - 1, population
  while high - low > 1:  # fits(high) always holds: a capacity of N never overflows
    middle = (low + high) // 2
    low, high = (low, middle) if fits(middle) else (middle, high)
  return high
