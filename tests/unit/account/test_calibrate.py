"""The missing number of a private run keeps the budget, and only just."""

import dataclasses
import math

import pytest

from fedjax_mem.account import accountant, calibrate, poisson
from fedjax_mem.core import Draws, IncompatibleStages
from fedjax_mem.mechanisms import DiscreteGaussian, Gaussian, Laplace, Matrix, Tree

DELTA = 1e-5
POISSON = Draws('poisson', 1000, 50, poisson.capacity(1000, 50, 100, DELTA))
FIXED = Draws('without_replacement', 1000, 50, 50)
TURNS = Draws('cyclic', 1000, 50, 50, 20)
GAUSSIAN = Gaussian(1.5)


@pytest.mark.slow
@pytest.mark.parametrize('target', [0.3, 2.0, 9.0])
@pytest.mark.parametrize(
  'sampling, mechanism',
  [
    (POISSON, GAUSSIAN),
    (TURNS, GAUSSIAN),
    (TURNS, Laplace(1.0)),
    (TURNS, Tree(1.0, restart=20)),
    (POISSON, DiscreteGaussian(1.0)),
    (TURNS, Matrix(1.0, sensitivities=(1.0,) * 50 + (1.4,) * 50)),
  ],
)
def test_noise_round_trip(sampling, mechanism, target):
  found = calibrate.noise_multiplier(target, DELTA, sampling, 100, mechanism)
  stated = accountant.epsilon(found.sampling, found.mechanism, 100, DELTA)
  assert stated == found.guarantee
  assert stated.epsilon <= target
  assert stated.epsilon == pytest.approx(target, abs=1e-4 * max(1, target / 10))


@pytest.mark.slow
def test_noise_round_trip_of_pld_needs_less_noise():
  by_rdp = calibrate.noise_multiplier(2.0, DELTA, POISSON, 100, accountant='rdp')
  by_pld = calibrate.noise_multiplier(2.0, DELTA, POISSON, 100, accountant='pld')
  assert calibrate.noise_multiplier(2.0, DELTA, POISSON, 100) == by_pld
  assert by_pld.mechanism.noise_multiplier < by_rdp.mechanism.noise_multiplier
  assert by_pld.guarantee.accountant == 'PLD'
  assert 2.0 - 1e-4 < by_pld.guarantee.epsilon <= 2.0


@pytest.mark.slow
def test_noise_of_a_fixed_cohort():
  found = calibrate.noise_multiplier(4.0, DELTA, FIXED, 5)
  assert found.guarantee.adjacency == 'replace_one'
  assert 4.0 - 1e-4 < found.guarantee.epsilon <= 4.0


@pytest.mark.slow
def test_noise_of_an_overflowing_cohort_is_that_of_a_truncated_one():
  cut = dataclasses.replace(POISSON, capacity=68)
  found = calibrate.noise_multiplier(2.0, DELTA, cut, 3)
  enough = calibrate.noise_multiplier(2.0, DELTA, POISSON, 3, accountant='pld')
  assert found.guarantee.accountant == 'PLD' and found.guarantee.delta == DELTA
  assert found.guarantee.epsilon <= 2.0
  assert found.mechanism.noise_multiplier > enough.mechanism.noise_multiplier


@pytest.mark.parametrize('sampling', [POISSON, TURNS])
def test_rounds_are_the_most_that_keep_the_budget(sampling):
  found = calibrate.rounds(3.0, DELTA, sampling, GAUSSIAN)
  assert found.guarantee.epsilon <= 3.0
  more = accountant.epsilon(sampling, GAUSSIAN, found.rounds + 1, DELTA)
  assert more.epsilon > 3.0


@pytest.mark.slow
def test_the_tighter_bound_allows_more_rounds_and_larger_cohorts():
  run = (2.0, DELTA, POISSON, GAUSSIAN)
  for solve, number in (
    (lambda **how: calibrate.rounds(*run, **how), lambda found: found.rounds),
    (lambda **how: calibrate.cohort(*run, 100, **how), lambda found: found.sampling.expected),
  ):
    either, by_rdp, by_pld = solve(), solve(accountant='rdp'), solve(accountant='pld')
    assert number(either) == number(by_pld) > number(by_rdp)
    assert either.guarantee == by_pld.guarantee and either.guarantee.epsilon <= 2.0


def test_a_mechanism_that_one_accountant_knows_is_calibrated_by_that():
  found = calibrate.noise_multiplier(2.0, DELTA, TURNS, 20, Tree(1.0, restart=20))
  assert found.guarantee.accountant == 'RDP' and 1.999 < found.guarantee.epsilon <= 2.0


def test_rounds_end_where_correlated_noise_ends():
  matrix = Matrix(50.0, sensitivities=(1.0,) * 30)
  assert calibrate.rounds(5.0, DELTA, TURNS, matrix).rounds == 30
  assert calibrate.rounds(5.0, DELTA, TURNS, Tree(50.0)).rounds == 20
  assert calibrate.rounds(5.0, DELTA, TURNS, Gaussian(1e6), most=77).rounds == 77


@pytest.mark.slow
@pytest.mark.parametrize('sampling, target', [(POISSON, 2.0), (TURNS, 5.0)])
def test_cohort_is_the_largest_that_keeps_the_budget(sampling, target):
  found = calibrate.cohort(target, DELTA, sampling, GAUSSIAN, 100)
  size = int(found.sampling.expected)
  assert found.guarantee.epsilon <= target
  larger = calibrate.resize(sampling, size + 1, 100, DELTA, target)
  assert accountant.epsilon(larger, GAUSSIAN, 100, DELTA).epsilon > target
  assert poisson.added_delta(found.sampling, 100, target) <= DELTA / 100


@pytest.mark.slow
def test_cohort_may_be_everybody():
  found = calibrate.cohort(5.0, DELTA, POISSON, Gaussian(1e4), 10)
  assert found.sampling.expected == found.sampling.capacity == 1000


@pytest.mark.parametrize('target', [0.0, -1.0, math.inf, math.nan])
def test_targets_out_of_range_are_refused(target):
  for solve in (
    lambda: calibrate.noise_multiplier(target, DELTA, POISSON, 10),
    lambda: calibrate.rounds(target, DELTA, POISSON, GAUSSIAN),
    lambda: calibrate.cohort(target, DELTA, POISSON, GAUSSIAN, 10),
  ):
    with pytest.raises(ValueError, match='target_epsilon must be'):
      solve()


@pytest.mark.parametrize('delta', [0.0, 1.0, -1.0])
def test_deltas_out_of_range_are_refused(delta):
  with pytest.raises(ValueError, match='delta must be'):
    calibrate.noise_multiplier(1.0, delta, POISSON, 10)


@pytest.mark.slow
def test_a_budget_below_one_round_is_refused():
  loud = dataclasses.replace(GAUSSIAN, noise_multiplier=0.5)
  with pytest.raises(ValueError, match='what one round costs, got 0\\.1'):
    calibrate.rounds(0.1, DELTA, POISSON, loud)
  with pytest.raises(ValueError, match='what a cohort of one costs in 9 rounds, got 0\\.01'):
    calibrate.cohort(0.01, DELTA, POISSON, loud, 9)


def test_pairs_without_an_event_and_rates_over_one_are_refused():
  with pytest.raises(IncompatibleStages, match='reveal data'):
    calibrate.noise_multiplier(
      1.0, DELTA, dataclasses.replace(POISSON, scheme='data_dependent'), 10
    )
  with pytest.raises(ValueError, match='at most the population'):
    calibrate.noise_multiplier(1.0, DELTA, dataclasses.replace(POISSON, expected=2000), 10)
