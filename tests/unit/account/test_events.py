"""Which pairs have an event, which accountant supports it, and what is refused."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import special, stats

from fedjax_mem.account import accountant, curves, events
from fedjax_mem.core import Bound, Draws, IncompatibleStages
from fedjax_mem.mechanisms import DiscreteGaussian, Gaussian, Laplace, Matrix, Skellam, Tree

POISSON = Draws('poisson', 1000, 50, 1000)
FIXED = Draws('without_replacement', 1000, 50, 50)
TURNS = Draws('cyclic', 1000, 50, 50, 20)
TURNS1 = Draws('cyclic', 1000, 50, 50)  # who may take part in every round
GAUSSIAN = Gaussian(2.0)
LAPLACE = Laplace(20.0)
DISCRETE = DiscreteGaussian(2.0)
SKELLAM = Skellam(2.0, dimension=1000)
GRID = Bound(l2=100.0)
TREE = Tree(2.0)
MATRIX = Matrix(2.0, sensitivities=tuple(1 + 0.1 * r for r in range(20)))

ADD, ONE, SPECIAL = events.ADJACENCIES

# (sampling, mechanism, event, {(accountant, adjacency)} that support it), as seen in 0.6.0.
TABLE = [
  (
    POISSON,
    GAUSSIAN,
    'PoissonSampledDpEvent',
    {('rdp', ADD), ('rdp', SPECIAL), ('pld', ADD), ('pld', ONE), ('pld', SPECIAL)},
  ),
  (POISSON, LAPLACE, 'PoissonSampledDpEvent', {('pld', ADD), ('pld', SPECIAL)}),
  (TURNS, LAPLACE, 'LaplaceDpEvent', {('rdp', ONE), ('rdp', SPECIAL), ('pld', SPECIAL)}),
  (
    TURNS,
    GAUSSIAN,
    'GaussianDpEvent',
    {('rdp', ONE), ('rdp', SPECIAL), ('pld', ONE), ('pld', SPECIAL)},
  ),
  (TURNS, TREE, 'SingleEpochTreeAggregationDpEvent', {('rdp', SPECIAL)}),
  (
    TURNS,
    MATRIX,
    'GaussianDpEvent',
    {('rdp', ONE), ('rdp', SPECIAL), ('pld', ONE), ('pld', SPECIAL)},
  ),
  (POISSON, DISCRETE, 'ZCDpEvent', {('rdp', ADD), ('rdp', ONE), ('rdp', SPECIAL)}),
  (FIXED, SKELLAM, 'ZCDpEvent', {('rdp', ONE), ('rdp', SPECIAL)}),
]


@pytest.mark.parametrize('sampling, mechanism, name, supported', TABLE)
def test_support_is_what_the_accountants_say(sampling, mechanism, name, supported):
  found = set()
  for kind in events.ACCOUNTANTS:
    for adjacency in events.ADJACENCIES:
      try:
        event, _ = events.build(sampling, mechanism, adjacency, kind, 20, GRID)
      except IncompatibleStages:
        continue
      assert type(event).__name__ == name
      if curves.supports(kind, event, adjacency):
        found.add((kind, adjacency))
  assert found == supported


def test_a_fixed_size_cohort_is_amplified_for_replaced_clients_by_rdp_only():
  event, _ = events.build(FIXED, GAUSSIAN, ONE, 'rdp', 5)
  assert type(event).__name__ == 'SampledWithoutReplacementDpEvent'
  assert (event.source_dataset_size, event.sample_size) == (1000, 50)
  assert curves.supports('rdp', event, ONE)
  assert not curves.supports('pld', event, ONE)
  unamplified, _ = events.build(FIXED, GAUSSIAN, SPECIAL, 'rdp', 5)
  assert type(unamplified).__name__ == 'GaussianDpEvent'


def test_a_truncated_cohort_is_for_pld_only():
  cut = dataclasses.replace(POISSON, capacity=60)
  event, _ = events.build(cut, GAUSSIAN, ADD, 'pld', 5, truncated=True)
  assert type(event).__name__ == 'TruncatedSubsampledGaussianDpEvent'
  assert (event.dataset_size, event.truncated_batch_size) == (1000, 60)
  assert curves.supports('pld', event, ADD) and not curves.supports('rdp', event, ADD)


def test_events_without_an_accountant_stay_without():
  import dp_accounting as dp

  for event in (
    dp.SampledWithReplacementDpEvent(1000, 50, dp.GaussianDpEvent(1.0)),
    dp.PoissonSampledDpEvent(0.05, dp.ZCDpEvent(0.1)),
  ):
    for kind in events.ACCOUNTANTS:
      assert not any(curves.supports(kind, event, relation) for relation in events.ADJACENCIES)


def test_replacing_a_client_halves_the_multiplier_except_where_pld_doubles():
  assert events.build(TURNS, GAUSSIAN, ONE, 'rdp', 1)[0].noise_multiplier == 1.0
  assert events.build(TURNS, GAUSSIAN, ONE, 'pld', 1)[0].noise_multiplier == 2.0
  assert events.build(TURNS, GAUSSIAN, SPECIAL, 'rdp', 1)[0].noise_multiplier == 2.0
  assert events.build(TURNS, LAPLACE, ONE, 'rdp', 1)[0].noise_multiplier == 10.0
  assert (
    events.build(TURNS, DISCRETE, ONE, 'rdp', 1)[0].rho
    == 4 * events.build(TURNS, DISCRETE, SPECIAL, 'rdp', 1)[0].rho
  )


def test_a_client_in_turn_is_counted_once_a_turn():
  count = lambda draws, rounds: events.build(draws, GAUSSIAN, SPECIAL, 'rdp', rounds)[1]
  assert [count(TURNS, r) for r in (1, 20, 21, 40, 41)] == [1, 1, 2, 2, 3]
  assert count(FIXED, 7) == count(None, 7) == 7


def test_a_tree_restarts_with_the_turns():
  tree = dataclasses.replace(TREE, restart=16)
  event, count = events.build(TURNS, tree, SPECIAL, 'rdp', 50)
  assert (event.step_counts, count) == (16, 3)
  assert events.build(TURNS, tree, SPECIAL, 'rdp', 5)[0].step_counts == 5


def test_a_matrix_is_one_release_of_its_sensitivity():
  event, count = events.build(TURNS, MATRIX, SPECIAL, 'rdp', 11)
  assert count == 1
  assert event.noise_multiplier == pytest.approx(2.0 / 2.0)


def test_a_draw_of_a_law_that_nobody_knows_amplifies_nothing():
  other = dataclasses.replace(FIXED, scheme='by strata')
  for adjacency in (None, 'replace_special', ONE):
    got = accountant.epsilon(other, GAUSSIAN, 10, 1e-5, adjacency=adjacency)
    assert (
      got.epsilon == accountant.epsilon(TURNS1, GAUSSIAN, 10, 1e-5, adjacency=got.adjacency).epsilon
    )


@pytest.mark.parametrize(
  'sampling, mechanism, adjacency, words',
  [
    (dataclasses.replace(POISSON, scheme='data_dependent'), GAUSSIAN, None, 'reveal data'),
    (dataclasses.replace(FIXED, scheme='by strata'), GAUSSIAN, ADD, 'nobody states'),
    (FIXED, GAUSSIAN, ADD, 'fixed size'),
    (TURNS, GAUSSIAN, ADD, 'turns of all others'),
    (None, GAUSSIAN, ADD, 'hide that it took part'),
    (POISSON, dataclasses.replace(SKELLAM, shares=9), ADD, 'a share of the noise less'),
    (POISSON, TREE, None, 'once in a tree'),
    (TURNS, TREE, None, 'restart the tree every 20 rounds'),
    (TURNS, dataclasses.replace(TREE, restart=21), None, 'restart the tree every 20 rounds'),
    (TURNS, dataclasses.replace(TREE, restart=16), ONE, "'rdp' with 'replace_special'"),
    (TURNS, dataclasses.replace(MATRIX, separation=21), None, 'assume 21 rounds'),
    (TURNS, MATRIX, None, 'covers 20 rounds, and 100'),
  ],
)
def test_pairs_without_an_event_are_refused_by_name(sampling, mechanism, adjacency, words):
  with pytest.raises(IncompatibleStages) as raised:
    accountant.claim(sampling, mechanism, rounds=100, delta=1e-5, adjacency=adjacency, bound=GRID)
  message = str(raised.value)
  scheme = 'own noise' if sampling is None else repr(sampling.scheme)
  assert scheme in message and type(mechanism).__name__ in message
  assert words in message


@pytest.mark.parametrize(
  'changed, words',
  [
    ({'expected': 1001}, 'at most the population'),
    ({'expected': 0}, 'expected must be'),
    ({'expected': math.nan}, 'expected must be'),
    ({'population': 0}, 'population must be'),
    ({'capacity': 0}, 'capacity must be'),
  ],
)
def test_samplings_out_of_range_are_refused(changed, words):
  with pytest.raises(ValueError, match=words):
    events.check(dataclasses.replace(POISSON, **changed), GAUSSIAN)


def test_an_asked_accountant_that_does_not_support_the_pair_is_refused():
  for sampling, mechanism, kind in ((POISSON, LAPLACE, 'rdp'), (FIXED, GAUSSIAN, 'pld')):
    with pytest.raises(IncompatibleStages, match=f"no event of '{kind}' covers it"):
      accountant.claim(sampling, mechanism, rounds=5, delta=1e-5, accountant=kind)


def renyi(order, p, q):
  """Renyi divergence of two distributions on the integers, far tails left out."""
  keep = (p > 1e-290) & (q > 1e-290)
  terms = order * np.log(p[keep]) + (1 - order) * np.log(q[keep])
  return special.logsumexp(terms) / (order - 1)


@pytest.mark.parametrize('stddev', [0.6, 2.0, 10.0])
def test_skellam_and_discrete_gaussian_lines_bound_the_divergence(stddev):
  x = np.arange(-400, 401)
  gauss = np.exp(-(x**2) / (2 * stddev**2))
  gauss /= gauss.sum()
  skellam = stats.skellam.pmf(x, stddev**2 / 2, stddev**2 / 2)
  rho_g, xi_g = DiscreteGaussian(stddev).concentrated(1)
  rho_s, xi_s = Skellam(stddev, dimension=1).concentrated(1, Bound(l2=1.0))
  for order in (2, 3, 5, 8):
    exact = renyi(order, gauss[1:], gauss[:-1])
    assert exact <= rho_g * order + xi_g + 1e-9
    if order * 8 < stddev * 40:
      assert exact == pytest.approx(rho_g * order, rel=1e-3)  # tight for a shift of one
    assert renyi(order, skellam[1:], skellam[:-1]) <= rho_s * order + xi_s + 1e-9


def test_a_sum_of_discrete_gaussians_costs_at_least_as_much_as_one():
  one = DiscreteGaussian(1.0)
  many = DiscreteGaussian(1.0, shares=50, dimension=1000)
  lines = [one.concentrated(1), *(many.concentrated(1, Bound(l2=x)) for x in (200.0, 5.0))]
  totals = [rho * 16 + xi for rho, xi in lines]
  assert totals[0] == pytest.approx(totals[1], rel=1e-9)
  assert totals[2] > totals[0] * 1.01


def convolved(a, b):
  """The logarithms of the masses of a sum, from those of two summands, centred."""
  rows = np.full((len(a), len(a) + len(b) - 1), -np.inf)
  for i, x in enumerate(a):
    rows[i, i : i + len(b)] = x + b
  return special.logsumexp(rows, axis=0)


def exact(order, logs, shift):
  """Renyi divergence of noise from noise that is moved, from the logarithms of its masses."""
  terms = order * logs[shift:] + (1 - order) * logs[: len(logs) - shift]
  return special.logsumexp(terms) / (order - 1)


@pytest.mark.parametrize('sigma', [0.3, 0.5, 0.6, 0.7, 1.0, 2.0])
@pytest.mark.parametrize('shares', [2, 3, 6])
def test_the_sum_of_discrete_gaussians_is_bounded(sigma, shares):
  """By brute force, on grids that are coarse and fine for a share."""
  x = np.arange(-30, 31)
  share = -(x**2) / (2 * sigma**2)
  share -= special.logsumexp(share)
  total = share
  for _ in range(shares - 1):
    total = convolved(total, share)
  for shift in (1, 2, 3):
    z = sigma * math.sqrt(shares) / shift
    made = DiscreteGaussian(z, shares=shares, dimension=1)
    rho, xi = made.concentrated(1, Bound(l2=float(shift)))
    for order in (2, 4, 8):
      found = exact(order, total, shift)
      assert found <= (rho * order + xi) * (1 + 1e-9)
      if sigma == 2.0:  # fine: nothing is given away
        assert found == pytest.approx(rho * order + xi, rel=1e-6)


def test_a_share_too_small_for_the_sum_is_accounted_alone():
  """Proposition 14 is for sigma >= 1/2 of a share; below, one share hides what it can."""
  made, one = lambda sigma: DiscreteGaussian(sigma * 3.0, shares=9, dimension=10), Bound(l2=1.0)
  assert made(0.49).concentrated(1, one) == pytest.approx((1 / (2 * 0.49**2), 0.0))
  assert made(0.5)._penalty(one) == pytest.approx(
    10 * sum(math.exp(-2 * math.pi**2 * 0.25 * k / (k + 1)) for k in range(1, 9))
  )
  assert made(0.49)._penalty(one) is None


@pytest.mark.parametrize('stddev', [0.5, 1.0, 3.0])
@pytest.mark.parametrize('moved', [(1,), (3,), (1, 1, 1, 1), (2, -1, 0, 1), (5, 1, 1)])
def test_skellam_in_several_dimensions_is_bounded(stddev, moved):
  """Divergences of coordinates add up; the bound knows norms and the dimension alone."""
  k = np.arange(-120, 121)
  with np.errstate(divide='ignore'):
    logs = np.log(special.ive(np.abs(k), stddev**2))
  logs = logs[np.isfinite(logs)]
  l2 = math.sqrt(sum(m * m for m in moved))
  rho, xi = Skellam(stddev / l2, dimension=len(moved)).concentrated(1, Bound(l2=l2))
  for order in (2, 3, 6, 12):
    assert sum(exact(order, logs, abs(m)) for m in moved if m) <= rho * order + xi


@pytest.mark.parametrize('sensitivity', [1, 2])
@pytest.mark.parametrize('l2, dimension', [(1.5, 4), (40.0, 100), (300.0, 25_000)])
@pytest.mark.parametrize('z', [0.3, 2.0])
def test_the_lines_are_the_published_bounds_at_a_typical_order(z, l2, dimension, sensitivity):
  """Agarwal, Kairouz, Liu (2021), Corollary 4.1; Kairouz, Liu, Steinke (2021), Proposition 14."""
  a, mu = 16, (z * l2) ** 2
  two, one = sensitivity * l2, sensitivity * min(math.sqrt(dimension) * l2, l2**2)
  more = min(((2 * a - 1) * two**2 + 6 * one) / (4 * mu**2), 3 * one / (2 * mu))
  rho, xi = Skellam(z, dimension=dimension).concentrated(sensitivity, Bound(l2=l2))
  published = a * two**2 / (2 * mu) + more
  assert published * (1 - 1e-9) <= rho * a + xi <= published * (1 + 1e-4)  # xi is not negative
  n = 12
  made = DiscreteGaussian(z, shares=n, dimension=dimension)
  rho, xi = made.concentrated(sensitivity, Bound(l2=l2))
  share = mu / n
  tau = 10 * sum(math.exp(-2 * math.pi**2 * share * k / (k + 1)) for k in range(1, n))
  lines = [a * two**2 / (2 * share)]  # the noise of one alone
  if share >= 0.25:
    lines += [a * two**2 / (2 * mu) + tau * dimension]
    lines += [a / 2 * (two / math.sqrt(mu) + math.sqrt(dimension) * tau) ** 2]
  assert rho * a + xi == pytest.approx(min(lines), rel=1e-9)
