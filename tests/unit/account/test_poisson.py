"""Poisson cohorts in a fixed number of rows."""

import math
from fractions import Fraction

import pytest

from fedjax_mem.account import poisson
from fedjax_mem.core import Draws


def exact_tail(population, rate, rows):
  """P(Binomial(population, rate) > rows) in exact arithmetic."""
  rate = Fraction(rate)
  return float(
    sum(
      math.comb(population, k) * rate**k * (1 - rate) ** (population - k)
      for k in range(rows + 1, population + 1)
    )
  )


@pytest.mark.parametrize('rows', [10, 20, 40, 60])
def test_overflow_is_the_exact_tail(rows):
  sampling = Draws('poisson', 120, 15, rows)
  once = exact_tail(120, 0.125, rows)
  assert poisson.overflow(sampling, 1) == pytest.approx(once, rel=1e-9)
  expected = -math.expm1(50 * math.log1p(-once))
  assert poisson.overflow(sampling, 50) == pytest.approx(expected, rel=1e-9)


def test_nothing_overflows_a_whole_population_or_a_fixed_cohort():
  assert poisson.overflow(Draws('poisson', 100, 50, 100), 1000) == 0
  assert poisson.overflow(Draws('without_replacement', 100, 50, 50), 1000) == 0


@pytest.mark.parametrize(
  'population, expected, rounds, delta, epsilon',
  [(1000, 50, 300, 1e-5, 2.0), (100_000, 100, 2000, 1e-7, 8.0), (30, 15, 10, 1e-3, 1.0)],
)
def test_capacity_is_the_least_that_keeps_a_hundredth_of_delta(
  population, expected, rounds, delta, epsilon
):
  rows = poisson.capacity(population, expected, rounds, delta, epsilon)
  at = lambda c: Draws('poisson', population, expected, c)
  assert poisson.overflow(at(rows), rounds) <= delta / 100
  assert poisson.added_delta(at(rows), rounds, epsilon) <= delta / 100
  assert poisson.added_delta(at(rows - 1), rounds, epsilon) > delta / 100


def test_capacity_grows_with_rounds_and_never_exceeds_the_population():
  rows = [poisson.capacity(1000, 50, r, 1e-5) for r in (1, 10, 1000, 100_000)]
  assert rows == sorted(rows) and rows[0] < rows[-1]
  assert poisson.capacity(20, 19.9, 1000, 1e-9) == 20
  assert poisson.capacity(1, 1, 1, 1e-5) == 1


def test_added_delta_counts_both_neighbours():
  sampling = Draws('poisson', 120, 15, 40)
  tau = poisson.overflow(sampling, 3)
  assert poisson.added_delta(sampling, 3, 2.0) == pytest.approx((1 + math.exp(2)) * tau)
  assert poisson.added_delta(sampling, 3, math.inf) == 1.0
  assert poisson.added_delta(sampling, 3, 1e5) == 1.0


@pytest.mark.parametrize(
  'changed', [{'population': 0}, {'expected': 0}, {'expected': 101}, {'rounds': 0}, {'delta': 0.0}]
)
def test_capacity_refuses_numbers_out_of_range(changed):
  name = next(iter(changed))
  with pytest.raises(ValueError, match=f'{name} must be'):
    poisson.capacity(**{'population': 100, 'expected': 10, 'rounds': 5, 'delta': 1e-5, **changed})
