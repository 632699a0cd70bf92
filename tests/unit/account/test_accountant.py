"""Epsilon against published values, closed forms, numerical twins and the traps."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats

from fedjax_mem import mechanisms
from fedjax_mem.account import accountant, curves, events, poisson
from fedjax_mem.core import Draws, IncompatibleStages
from fedjax_mem.mechanisms import DiscreteGaussian, Gaussian, Laplace, Matrix, Tree

DELTA = 1e-5
ADD, ONE, SPECIAL = events.ADJACENCIES


def poisson_sampling(population, expected, capacity=None):
  return Draws('poisson', population, expected, capacity or population)


def epsilon(sampling, noise, rounds, name='gaussian', **how):
  return accountant.epsilon(sampling, mechanisms.find(name)(noise), rounds, DELTA, **how).epsilon


@pytest.mark.slow
@pytest.mark.parametrize(
  'cohort, population, noise, rounds, rdp, pld',
  [
    (120, 3383, 1.2, 100, 1.9861, 1.7075),
    (256, 60000, 1.1, 14062, 2.5966, 2.3817),
    (100, 10000, 1.0, 10000, 6.7128, 6.1877),
    (1000, 1000, 5.0, 50, 7.0774, 6.5730),
  ],
)
def test_published_values(cohort, population, noise, rounds, rdp, pld):
  sampling = poisson_sampling(population, cohort)
  assert epsilon(sampling, noise, rounds, accountant='rdp') == pytest.approx(rdp, abs=5.1e-5)
  assert epsilon(sampling, noise, rounds, accountant='pld') == pytest.approx(pld, abs=5.1e-5)
  assert epsilon(sampling, noise, rounds) == epsilon(sampling, noise, rounds, accountant='pld')


def gaussian_delta(epsilon, mu):
  """Hockey-stick divergence of N(mu, 1) and N(0, 1) (Balle and Wang 2018)."""
  at = mu / 2 - epsilon / mu
  return stats.norm.cdf(at) - math.exp(epsilon) * stats.norm.cdf(at - mu)


def gaussian_epsilon(mu):
  return optimize.brentq(lambda e: gaussian_delta(e, mu) - DELTA, 0, 200, xtol=1e-12)


@pytest.mark.parametrize('noise, rounds', [(1.0, 1), (5.0, 50), (0.7, 3)])
def test_unsampled_gaussians_have_their_closed_forms(noise, rounds):
  turns = Draws('cyclic', 100, 10, 10)
  exact = gaussian_epsilon(math.sqrt(rounds) / noise)
  assert epsilon(turns, noise, rounds, accountant='pld') == pytest.approx(exact, rel=1e-6)
  orders = np.linspace(1.02, 400, 200_000)
  rho = rounds / (2 * noise**2)
  line = rho * orders + np.log1p(-1 / orders) - np.log(DELTA * orders) / (orders - 1)
  by_rdp = epsilon(turns, noise, rounds, accountant='rdp')
  assert by_rdp == pytest.approx(line.min(), rel=2e-3)
  assert by_rdp >= exact


def mixture_epsilon(density_p, density_q):
  """Epsilon at DELTA of two densities on the line, by integration."""

  def delta(e):
    gap = lambda x: max(0.0, density_p(x) - math.exp(e) * density_q(x))
    return sum(
      integrate.quad(gap, a, b, limit=200, epsabs=1e-12)[0]
      for a, b in zip(range(-24, 24, 4), range(-20, 28, 4), strict=True)
    )

  return optimize.brentq(lambda e: delta(e) - DELTA, 0, 60, xtol=1e-5)


@pytest.mark.slow
def test_one_poisson_round_by_integration():
  rate, noise = 0.2, 1.5
  normal = lambda at: lambda x: stats.norm.pdf(x, at, noise)
  plain, moved = normal(0), normal(1)
  mixed = lambda x: (1 - rate) * plain(x) + rate * moved(x)
  exact = max(mixture_epsilon(mixed, plain), mixture_epsilon(plain, mixed))
  sampling = poisson_sampling(1000, 200)
  assert epsilon(sampling, noise, 1, accountant='pld') == pytest.approx(exact, abs=2e-4)
  assert epsilon(sampling, noise, 1, accountant='rdp') >= exact


def test_replacing_a_client_moves_the_sum_by_two_bounds():
  """The trap: epsilon of 'replace one' with the sensitivity of 'add or remove one'."""
  turns = Draws('cyclic', 100, 10, 10)
  for noise, rounds in ((2.0, 1), (4.0, 9)):
    by_rdp = epsilon(turns, noise, rounds, adjacency=ONE, accountant='rdp')
    by_pld = epsilon(turns, noise, rounds, adjacency=ONE, accountant='pld')
    exact = gaussian_epsilon(2 * math.sqrt(rounds) / noise)
    assert by_pld == pytest.approx(exact, rel=1e-6)
    assert exact <= by_rdp <= 1.1 * exact  # the two accountants agree
    trap = epsilon(turns, noise, rounds, adjacency=SPECIAL, accountant='rdp')
    assert trap < 0.6 * exact


@pytest.mark.slow
def test_a_fixed_cohort_is_never_claimed_below_the_truth():
  rate, noise = 0.2, 2.0
  normal = lambda at: lambda x: stats.norm.pdf(x, at, noise)
  left = lambda x: (1 - rate) * normal(0)(x) + rate * normal(-1)(x)
  right = lambda x: (1 - rate) * normal(0)(x) + rate * normal(1)(x)
  fixed = Draws('without_replacement', 1000, 200, 200)
  assert epsilon(fixed, noise, 1) >= mixture_epsilon(right, left)


def test_a_fixed_cohort_cannot_be_accounted_as_poisson():
  fixed = Draws('without_replacement', 1000, 50, 50)
  with pytest.raises(IncompatibleStages, match='fixed size'):
    epsilon(fixed, 1.0, 100, adjacency=ADD)
  stated = accountant.epsilon(fixed, Gaussian(1.0), 100, DELTA)
  assert (stated.adjacency, stated.accountant) == (ONE, 'RDP')
  assert stated.epsilon > 2 * epsilon(poisson_sampling(1000, 50), 1.0, 100)


def test_shuffled_batches_are_not_amplified():
  """The trap: batches in a fixed order (a shuffle) accounted as Poisson."""
  shuffled = Draws('cyclic', 1000, 50, 50, 20)
  assert epsilon(shuffled, 1.0, 20) == epsilon(Draws('cyclic', 1, 1, 1), 1.0, 1)
  assert epsilon(shuffled, 1.0, 20) > 1.5 * epsilon(poisson_sampling(1000, 50), 1.0, 20)


def test_a_whole_population_is_not_amplified():
  fixed = Draws('without_replacement', 100, 100, 100)
  nearly = Draws('without_replacement', 100, 99, 99)
  unsampled = epsilon(Draws('cyclic', 100, 10, 10), 4.0, 10, adjacency=ONE, accountant='rdp')
  assert epsilon(fixed, 4.0, 10) == unsampled
  assert epsilon(nearly, 4.0, 10) <= unsampled  # where the library's bound exceeds it


def test_events_made_of_lists_are_composed():
  import dp_accounting

  @dataclasses.dataclass(frozen=True)
  class Two(Gaussian):
    def once(self, moves, bound):
      one = dp_accounting.GaussianDpEvent(self.noise_multiplier / moves)
      return dp_accounting.ComposedDpEvent([one, one])

  both = accountant.epsilon(None, Two(4.0), 3, DELTA, accountant='rdp').epsilon
  alone = accountant.epsilon(None, Gaussian(4.0), 6, DELTA, accountant='rdp').epsilon
  assert both == pytest.approx(alone, rel=1e-6)


def test_local_noise_claims_no_amplification():
  stated = accountant.epsilon(None, Gaussian(4.0), 9, DELTA, accountant='pld')
  assert (stated.trust, stated.adjacency) == ('local', ONE)
  assert stated.epsilon == pytest.approx(gaussian_epsilon(2 * math.sqrt(9) / 4.0), rel=1e-6)


def test_laplace_is_pure_where_that_is_less():
  turns = Draws('cyclic', 100, 10, 10)
  assert epsilon(turns, 2.0, 1, 'laplace', accountant='rdp') == pytest.approx(0.5)
  assert epsilon(turns, 2.0, 1, 'laplace') <= 0.5 + 1e-9
  assert epsilon(turns, 2.0, 1, 'laplace', adjacency=ONE) == pytest.approx(1.0)
  assert epsilon(turns, 20.0, 400, 'laplace') < 400 / 20.0
  assert (
    epsilon(poisson_sampling(100, 10), 2.0, 1, 'laplace')
    <= math.log1p(0.1 * math.expm1(0.5)) + 2e-4
  )


@pytest.mark.slow
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
  cohort=st.integers(1, 400),
  more=st.integers(1, 100),
  noise=st.floats(0.5, 8.0),
  rounds=st.integers(1, 3000),
  scheme=st.sampled_from(['poisson', 'cyclic']),
)
def test_epsilon_grows_with_rounds_rate_and_less_noise(cohort, more, noise, rounds, scheme):
  sampling = Draws(scheme, 500, cohort, 500)
  base = epsilon(sampling, noise, rounds)
  slack = base * 1e-9 + 1e-9
  assert epsilon(sampling, noise, rounds + more) >= base - slack
  assert (
    epsilon(dataclasses.replace(sampling, expected=cohort + more), noise, rounds) >= base - slack
  )
  assert epsilon(sampling, noise / (1 + more / 50), rounds) >= base - slack


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True)
@given(cohort=st.integers(1, 95), noise=st.floats(1.0, 8.0), rounds=st.integers(1, 500))
def test_epsilon_of_a_fixed_cohort_is_monotone_too(cohort, noise, rounds):
  fixed = Draws('without_replacement', 100, cohort, cohort)
  base = epsilon(fixed, noise, rounds)
  assert epsilon(fixed, noise, 2 * rounds) >= base
  assert epsilon(dataclasses.replace(fixed, expected=cohort + 5), noise, rounds) >= base * (
    1 - 1e-9
  )
  assert epsilon(fixed, noise / 1.5, rounds) >= base


@pytest.mark.slow
def test_vectorised_conversion_equals_the_library():
  from dp_accounting import rdp

  event, _ = events.build(poisson_sampling(1000, 30), Gaussian(0.9), ADD, 'rdp', 1)
  counts = np.asarray([1, 2, 7, 100, 5000, 2, 1])
  ours = curves.rdp_epsilon(event, counts, ADD, DELTA)
  theirs = [rdp.RdpAccountant().compose(event, int(k)).get_epsilon(DELTA) for k in counts]
  np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize('name', ['laplace', 'gaussian'])
def test_composed_losses_equal_the_library(name):
  from dp_accounting import pld

  event, _ = events.build(poisson_sampling(1000, 30), mechanisms.find(name)(3.0), ADD, 'pld', 1)
  theirs = pld.PLDAccountant().compose(event, 40).get_epsilon(DELTA)
  assert curves.pld_epsilon(event, 40, ADD, DELTA, 1e-4) == pytest.approx(theirs, rel=1e-9)


RUNS = {
  'low rate': (poisson_sampling(1_000_000, 1000), Gaussian(1.0), 2000, 1e-7, 'pld'),
  'no amplification': (Draws('cyclic', 1000, 50, 50, 20), Gaussian(2.0), 40, DELTA, 'pld'),
  'fixed cohorts': (Draws('without_replacement', 1000, 50, 50), Gaussian(2.0), 40, DELTA, 'rdp'),
  'replace one': (poisson_sampling(1000, 50), Gaussian(2.0), 40, DELTA, 'pld'),
  'laplace': (Draws('cyclic', 1000, 50, 50), Laplace(50.0), 900, DELTA, 'pld'),
  'integers': (poisson_sampling(1000, 50), DiscreteGaussian(2.0), 4, DELTA, 'rdp'),
  'tree': (Draws('cyclic', 100, 10, 10, 10), Tree(2.0, restart=10), 20, DELTA, 'rdp'),
  'matrix': (Draws('cyclic', 100, 10, 10, 10), Matrix(2.0, (1.0,) * 20), 20, DELTA, 'pld'),
  'nothing to lose': (poisson_sampling(1000, 50), Gaussian(1e7), 4, DELTA, 'rdp'),
}


@pytest.mark.parametrize('name', RUNS)
def test_the_tighter_of_the_bounds_that_hold_is_stated(name):
  sampling, mechanism, rounds, delta, winner = RUNS[name]
  how = {'adjacency': ONE if name == 'replace one' else None, 'rounds': rounds, 'delta': delta}
  made = accountant.claim(sampling, mechanism, **how)
  bounds = {}
  for kind in events.ACCOUNTANTS:
    try:
      one = accountant.claim(sampling, mechanism, accountant=kind, **how)
    except IncompatibleStages:
      continue
    bounds[kind] = one.epsilon(rounds, delta)
  assert made.chosen and made.accountant == winner
  assert made.epsilon(rounds, delta) == min(bounds.values())
  assert made.guarantee(rounds, delta).accountant == winner.upper()


def test_a_run_at_a_low_rate_is_not_stated_at_three_times_its_cost():
  sampling, mechanism, rounds, delta, _ = RUNS['low rate']
  stated = accountant.epsilon(sampling, mechanism, rounds, delta)
  by_rdp = accountant.epsilon(sampling, mechanism, rounds, delta, accountant='rdp')
  assert by_rdp.epsilon == pytest.approx(1.0738, abs=5e-5)
  assert stated.epsilon == pytest.approx(0.2983, abs=5e-5)


def test_an_accountant_that_is_asked_for_is_not_chosen():
  made = accountant.claim(
    poisson_sampling(1000, 50), Gaussian(2.0), rounds=4, delta=DELTA, accountant='rdp'
  )
  assert made.accountant == 'rdp' and not made.chosen


def test_overflow_is_added_to_delta():
  noise = Gaussian(2.0)
  roomy = accountant.epsilon(poisson_sampling(1000, 50), noise, 200, DELTA)
  rows = poisson.capacity(1000, 50, 200, DELTA)
  cut = accountant.epsilon(poisson_sampling(1000, 50, rows), noise, 200, DELTA)
  tau = poisson.overflow(poisson_sampling(1000, 50, rows), 200)
  assert roomy.delta == DELTA
  assert cut.epsilon == roomy.epsilon
  assert tau > 0
  assert cut.delta == pytest.approx(DELTA + (1 + math.exp(cut.epsilon)) * tau, rel=1e-12)
  assert cut.delta <= 1.01 * DELTA


def test_too_few_rows_are_accounted_as_truncated_or_refused():
  noise, cut = Gaussian(2.0), poisson_sampling(1000, 50, 64)
  made = accountant.claim(cut, noise, rounds=5, delta=DELTA)
  stated = made.guarantee(5, DELTA)
  assert made.truncated and (stated.accountant, stated.delta) == ('PLD', DELTA)
  assert stated.epsilon > epsilon(poisson_sampling(1000, 50), 2.0, 5, accountant='pld')
  with pytest.raises(IncompatibleStages, match='give it more rows'):
    accountant.claim(cut, noise, rounds=5, delta=DELTA, accountant='rdp')
  with pytest.raises(IncompatibleStages, match='give it more rows'):
    accountant.claim(cut, Laplace(2.0), rounds=5, delta=DELTA)


def test_overflow_does_not_matter_where_nothing_is_claimed_of_the_draw():
  cut = poisson_sampling(1000, 50, 51)
  for draws, mechanism, name in ((cut, DiscreteGaussian(2.0), 'RDP'), (None, Gaussian(2.0), 'PLD')):
    stated = accountant.epsilon(draws, mechanism, 5, DELTA)
    assert (stated.delta, stated.accountant) == (DELTA, name)


def test_low_noise_stays_cheap_and_finite():
  stated = accountant.epsilon(
    poisson_sampling(1000, 50), Gaussian(0.1), 300, DELTA, accountant='pld'
  )
  assert 100 < stated.epsilon < math.inf and stated.level == 'Minimal'


@pytest.mark.parametrize('delta', [0.0, 1.0, -1e-5, 2.0, math.nan])
def test_delta_outside_its_range_is_refused(delta):
  with pytest.raises(ValueError, match='delta must be'):
    accountant.epsilon(poisson_sampling(100, 10), Gaussian(1.0), 5, delta)


def test_a_delta_of_one_over_the_population_is_warned_of():
  with pytest.warns(UserWarning, match='1 / 100 '):
    accountant.epsilon(poisson_sampling(100, 10), Gaussian(1.0), 5, 0.01)


@pytest.mark.parametrize('rounds', [0, -1, 1.5, True])
def test_rounds_out_of_range_are_refused(rounds):
  with pytest.raises(ValueError, match='rounds must be'):
    accountant.epsilon(poisson_sampling(100, 10), Gaussian(1.0), rounds, DELTA)


@pytest.mark.parametrize(
  'changed, words',
  [
    ({'noise_multiplier': 0.0}, 'noise_multiplier must be'),
    ({'noise_multiplier': math.nan}, 'noise_multiplier must be'),
  ],
)
def test_mechanisms_out_of_range_are_refused(changed, words):
  with pytest.raises(ValueError, match=words):
    dataclasses.replace(Gaussian(1.0), **changed)
