"""Samplers: who is drawn, how often, and at the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny
from scipy import stats

from fedjax_mem.core import Context, Draws
from fedjax_mem.kernels.random import laws
from fedjax_mem.stages.select import dropout, poisson, round_robin, uniform
from fedjax_mem.stages.select._base import ordered_sample

DRAWS = 4000


def context(key, round=0):
  common = jax.random.fold_in(key, 99)
  return Context(key, common, jnp.int32(round), None, None, None, None, None)


@functools.cache
def drawn(layer_of, *args):
  """Returns (cohorts [DRAWS, C], metrics) under as many keys."""
  layer = layer_of(*args)
  state = layer.value(None)
  draw = lambda key: tiny.drawn(layer, context(key), state)[::2]
  return jax.tree.map(
    np.asarray, jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(7), DRAWS))
  )


# Both branches of the draw: a permutation (4 C > N), and rejection of repeats.
SIZES = ((10, 4), (10, 10), (1, 1), (2, 1), (40, 10), (41, 10), (100, 3), (1000, 12), (5, 1))


@pytest.mark.first(1)
@pytest.mark.parametrize('population, size', SIZES)
def test_uniform_draws_distinct_clients_alike(population, size):
  cohort, _ = drawn(uniform, population, size)
  ids = cohort.id
  assert ids.shape == (DRAWS, size) and ids.min() >= 0 and ids.max() < population
  assert all(len(set(row)) == size for row in ids.tolist())
  assert cohort.real.all() and cohort.arrived.all()
  np.testing.assert_allclose(cohort.chance, size / population, rtol=1e-6)
  if size < population:
    counts = np.bincount(ids.ravel(), minlength=population)
    expected = DRAWS * size / population
    # Draws without replacement: the statistic shrinks by 1 - C / N (Hansen and Hurwitz).
    statistic = ((counts - expected) ** 2 / expected).sum() / (1 - size / population)
    statistic *= (population - 1) / population
    low, high = stats.chi2(population - 1).ppf([1e-4, 1 - 1e-4])
    assert low < statistic < high


@pytest.mark.parametrize('population, size', ((10, 4), (41, 10)))
def test_every_place_in_the_order_is_uniform_and_pairs_are_alike(population, size):
  ids = drawn(uniform, population, size)[0].id
  for place in (0, size - 1):
    counts = np.bincount(ids[:, place], minlength=population)
    assert stats.chisquare(counts).pvalue > 1e-4
  together = ((ids == 0).any(1) & (ids == 1).any(1)).sum()
  chance = size * (size - 1) / (population * (population - 1))
  assert stats.binomtest(int(together), DRAWS, chance).pvalue > 1e-4


@pytest.mark.slow
def test_rejection_goes_on_until_there_are_enough():
  # 30 draws of 4 * 8 ids leave too few distinct ones now and then; the loop must not stop there.
  keys = jax.random.split(jax.random.key(1), 2000)
  ids = np.asarray(jax.vmap(lambda k: ordered_sample(k, 32, 8))(keys))
  assert all(len(set(row)) == 8 for row in ids.tolist())


@pytest.mark.parametrize(
  'population, size, message',
  [
    (10, 11, 'cohort_size must be at most the number of clients .10., got 11'),
    (10, 0, 'cohort_size must be an integer >= 1, got 0'),
    (0, 1, 'num_clients must be an integer >= 1, got 0'),
    (10, 2.5, 'cohort_size must be an integer >= 1, got 2.5'),
  ],
)
@pytest.mark.parametrize('sampler', (uniform, round_robin))
def test_sizes_out_of_range(sampler, population, size, message):
  with pytest.raises(ValueError, match=message):
    sampler(population, size)


def test_round_robin_covers_everyone_in_turn():
  layer = round_robin(10, 4)
  state, seen = layer.value(None), []
  for round in range(5):
    key = jax.random.key(round)
    cohort, state, _ = tiny.drawn(layer, context(key, round), state)
    seen += cohort.id.tolist()
  assert seen == list(range(10)) * 2
  assert layer.fact(Draws).min_sep == 2
  last = {i: r for r in range(5) for i in seen[4 * r : 4 * r + 4]}
  assert set(last) == set(range(10))


def test_round_robin_keeps_its_separation():
  layer = round_robin(11, 3)
  state, last = layer.value(None), {}
  for round in range(40):
    cohort, state, _ = tiny.drawn(layer, context(jax.random.key(0)), state)
    for i in cohort.id.tolist():
      assert round - last.get(i, -99) >= layer.fact(Draws).min_sep
      last[i] = round


POISSON = ((30, 0.2), (200, 0.03), (1, 0.5), (12, 1.0), (8, 0.9))


@pytest.mark.first(1)
@pytest.mark.parametrize('population, rate', POISSON)
def test_a_poisson_cohort_has_a_binomial_size_and_uniform_members(population, rate):
  cohort, metrics = drawn(poisson, population, rate)
  sizes = cohort.real.sum(1)
  assert not metrics['overflow'].any()
  law = stats.binom(population, rate)
  support = np.arange(population + 1)
  expected = DRAWS * law.pmf(support)
  counts = np.bincount(sizes, minlength=population + 1)
  big = expected >= 5  # classes too small for chi-square are pooled
  observed, wanted = [*counts[big]], [*expected[big]]
  if expected[~big].sum() > 0.5:
    observed, wanted = [*observed, counts[~big].sum()], [*wanted, expected[~big].sum()]
  if len(wanted) > 1:
    wanted = np.array(wanted) * DRAWS / sum(wanted)
    assert stats.chisquare(observed, wanted).pvalue > 1e-4
  else:
    assert observed == [DRAWS]
  np.testing.assert_allclose(cohort.chance[cohort.real], rate, rtol=1e-6)
  assert (cohort.id[~cohort.real] == population).all()
  assert (cohort.real == cohort.arrived).all()


def test_poisson_inclusions_are_independent():
  cohort, _ = drawn(poisson, 30, 0.2)
  there = np.zeros((DRAWS, 31), bool)
  np.put_along_axis(there, cohort.id, True, axis=1)
  there = there[:, :30]
  assert stats.chisquare(there.sum(0)).statistic / 0.8 < stats.chi2(30).ppf(1 - 1e-4)
  # The covariance of two inclusions is zero, unlike in a cohort of fixed size (- 0.0055).
  covariance = np.cov(there.T.astype(float))
  off = covariance[~np.eye(30, dtype=bool)].mean()
  spread = 0.2 * 0.8 * np.sqrt(2 / (30 * 29 * DRAWS))
  assert abs(off) < 4 * spread < 0.0055


def test_an_overflowing_poisson_cohort_is_cut_uniformly_and_reported():
  cohort, metrics = drawn(poisson, 20, 0.5, 6)
  assert cohort.id.shape == (DRAWS, 6)
  share = stats.binom(20, 0.5).sf(6)
  assert stats.binomtest(int(metrics['overflow'].sum()), DRAWS, share).pvalue > 1e-4
  over = cohort.id[metrics['overflow'] == 1]
  assert (over < 20).all()
  counts = np.bincount(over.ravel(), minlength=20)
  assert stats.chisquare(counts).statistic / (1 - 6 / 20) < stats.chi2(19).ppf(1 - 1e-4)


def test_the_default_capacity_overflows_once_in_a_billion_rounds_at_most():
  for population, rate in ((1000, 0.01), (50, 0.5), (10**6, 1e-4)):
    capacity = poisson(population, rate).fact(Draws).capacity
    law = stats.binom(population, rate)
    assert law.sf(capacity) <= 1e-9 < law.sf(capacity - 1)
  assert poisson(3, 1.0).fact(Draws).capacity == 3
  assert poisson(10, 1e-12).fact(Draws).capacity == 1


@pytest.mark.parametrize(
  'population, rate, capacity', ((1000, 0.01, 40), (50, 0.5, 50), (5, 1.0, 5))
)
def test_the_thresholds_are_the_distribution_to_float64(population, rate, capacity):
  high, low = laws.thresholds(stats.binom(population, rate).sf(np.arange(capacity + 1)))
  held = [(int(h) << 32) + int(x) for h, x in zip(high, low, strict=True)]
  k = np.arange(capacity + 1)
  upper = stats.binom(population, rate).sf(k)
  exact = [min(2**64 - 1, 2**64 - int(p * 2.0**64)) for p in upper]
  # sf is accurate in the tail that matters; cdf agrees with it to float64.
  assert held == exact and held == sorted(held)
  np.testing.assert_allclose(
    [t / 2**64 for t in held], stats.binom(population, rate).cdf(k), rtol=0, atol=2e-16 * 4
  )


def test_a_rate_out_of_range():
  for rate in (0, 1.5, float('nan'), -0.1):
    with pytest.raises(ValueError, match=r'rate must be a number in \(0, 1\], got'):
      poisson(10, rate)
  with pytest.raises(ValueError, match='capacity must be an integer >= 1 and <= 10, got 11'):
    poisson(10, 0.5, 11)


@pytest.mark.slow
@pytest.mark.parametrize('rate', (0.0, 0.3, 1.0))
def test_drop_outs_are_selected_but_do_not_arrive(rate):
  def lossy(key):
    cohort, _, _ = tiny.drawn(uniform(20, 5), context(key))
    again = context(jax.random.fold_in(key, 1))
    return tiny.drawn(dropout(rate), again, cohort=cohort)[::2]

  keys = jax.random.split(jax.random.key(7), DRAWS)
  cohort, metrics = jax.tree.map(np.asarray, jax.jit(jax.vmap(lossy))(keys))
  assert cohort.real.all()
  np.testing.assert_array_equal(metrics['dropped_out'], (~cohort.arrived).sum(1))
  lost = int((~cohort.arrived).sum())
  if rate in (0, 1):
    assert lost == rate * cohort.arrived.size
  else:
    assert stats.binomtest(lost, cohort.arrived.size, rate).pvalue > 1e-4
    assert stats.chisquare(np.bincount(cohort.id[~cohort.arrived], minlength=20)).pvalue > 1e-4


def test_a_rate_of_drop_out_beyond_one_is_refused():
  with pytest.raises(ValueError, match=r'rate must be a number in \[0, 1\], got 1.5'):
    dropout(1.5)


def test_samplers_say_what_they_do():
  made = (uniform(10, 4), round_robin(10, 4), poisson(10, 0.4, 7))
  told = [(s.scheme, s.population, s.expected, s.capacity) for s in (x.fact(Draws) for x in made)]
  assert told == [
    ('without_replacement', 10, 4, 4),
    ('cyclic', 10, 4, 4),
    ('poisson', 10, 4.0, 7),
  ]


@pytest.mark.parametrize('population, size', [(1000, 50), (8, 2), (40, 10)])
def test_a_small_sample_is_the_first_distinct_draws_in_their_order(population, size):
  draws = size + size // 2 + 16
  sample = jax.jit(lambda key: ordered_sample(key, population, size))
  for seed in range(20):
    key, distinct, attempt = jax.random.key(seed), [], 0
    while len(distinct) < size:
      own = jax.random.fold_in(key, attempt)
      drawn = np.asarray(jax.random.randint(own, (draws,), 0, population)).tolist()
      distinct, attempt = list(dict.fromkeys(drawn)), attempt + 1
    assert np.asarray(sample(key)).tolist() == distinct[:size]
