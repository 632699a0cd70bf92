"""Importance sampling: its probabilities, that it is unbiased, and what it remembers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny
from scipy import stats

from fedjax_mem.core import Context, Draws, IncompatibleStages, compose
from fedjax_mem.engine import simulate
from fedjax_mem.stages.select import importance
from fedjax_mem.stages.select.importance import Seen, inclusion, scores
from fedjax_mem.stages.weigh import by_examples, equal

DRAWS = 20_000


def twin(score, expected, explore):
  """Returns the probabilities by raising the scale and fixing those that reach 1, one by one."""
  score, n = np.asarray(score, np.float64), len(score)
  share = score / score.sum() if score.sum() > 0 else np.full(n, 1 / n)
  share = (1 - explore) * share + explore / n
  certain = np.zeros(n, bool)
  while True:
    left = expected - certain.sum()
    scale = left / share[~certain].sum() if (~certain).any() else 0.0
    over = ~certain & (scale * share > 1)
    if not over.any():
      return np.where(certain, 1.0, np.minimum(scale * share, 1))
    certain[np.flatnonzero(over)[np.argmax(share[over])]] = True


CASES = {
  'random': (np.random.default_rng(0).exponential(size=40), 9),
  'skewed': (np.random.default_rng(1).pareto(0.6, 30), 12),
  'ties': (np.array([5.0, 5, 5, 1, 1, 1, 0, 0]), 4),
  'one dominates': (np.array([1e12, 1, 1, 1, 1, 1]), 3),
  'nothing seen': (np.zeros(7), 3),
  'everyone': (np.array([3.0, 0, 1e6, 2]), 4),
  'all but one': (np.array([3.0, 0, 1e6, 2]), 3),
  'one client': (np.array([2.0]), 1),
  'huge': (np.array([3e37, 1e37, 1e30, 0]), 2),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('explore', (0.01, 0.3, 1.0))
def test_probabilities_follow_the_scores_up_to_one_and_add_up(name, explore):
  score, expected = CASES[name]
  got = np.asarray(inclusion(jnp.asarray(score, jnp.float32), expected, explore), np.float64)
  np.testing.assert_allclose(got, twin(score, expected, explore), rtol=2e-5, atol=1e-6)
  assert got.sum() == pytest.approx(expected, rel=1e-5)
  assert got.max() <= 1 and got.min() >= min(1, explore * expected / len(score)) * (1 - 1e-5)


def test_who_was_not_seen_stands_at_the_mean_in_proportion_to_size():
  table = Seen(jnp.array([6.0, 0, 2, 0]), jnp.array([True, False, True, False]))
  sizes = np.array([3, 5, 1, 2], np.float32)  # of those seen: 8 on 4 examples
  np.testing.assert_allclose(scores(table, sizes), [6, 10, 2, 4])
  nobody = Seen(jnp.zeros(4), jnp.zeros(4, bool))
  np.testing.assert_allclose(scores(nobody, sizes), sizes)


def context(key):
  return Context(key, key, jnp.int32(0), None, None, None, None, None)


def drawn(layer, table, number=DRAWS):
  draw = lambda key: tiny.drawn(layer, context(key), (), table)
  keys = jax.random.split(jax.random.key(5), number)
  cohort, _, metrics = jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys))
  return cohort, metrics


VALUES = np.array([9.0, 0.2, 3, 1, 0.05, 4, 0.7, 2], np.float32)
UPDATES = np.random.default_rng(2).normal(size=(8, 3)) + 1.0  # weighted updates of the clients


def test_inverse_chances_are_unbiased_and_the_self_normalised_mean_is_not():
  (layer,) = importance(8, 3)
  cohort, _ = drawn(layer, Seen(jnp.asarray(VALUES), jnp.ones(8, bool)))
  rows = np.where(cohort.real, cohort.id, 0)
  inverse = np.where(cohort.real, 1 / cohort.chance, 0.0)
  sums = (inverse[..., None] * UPDATES[rows]).sum(1)
  error = sums.std(0) / np.sqrt(DRAWS)
  z = (sums.mean(0) - UPDATES.sum(0)) / error
  assert np.abs(z).max() < stats.norm.isf(1e-5)
  # As it would be with equal weights and no fixed divisor.
  some = cohort.real.any(1)
  means = sums[some] / inverse[some].sum(1)[:, None]
  off = (means.mean(0) - UPDATES.mean(0)) / (means.std(0) / np.sqrt(some.sum()))
  assert np.abs(off).max() > 10


@pytest.mark.slow
def test_a_small_chance_is_the_one_with_which_a_float_is_drawn():
  """Of 2^23 equally likely values exactly the told share lies below; 1e-6 itself is none."""
  (layer,) = importance(100_000, 1)
  table = Seen(jnp.zeros(100_000).at[0].set(1.0), jnp.ones(100_000, bool))
  _, _, metrics = tiny.drawn(layer, context(jax.random.key(0)), (), table)
  least = float(metrics['least_chance'])
  values = np.arange(2**23, dtype=np.float32) / 2**23
  assert (values < least).mean() == least and 1e-6 < least < 1e-6 + 2**-23
  drawn = np.asarray(jax.random.uniform(jax.random.key(1), (1000,)), np.float64) * 2**23
  assert (drawn == np.floor(drawn)).all()


@pytest.mark.slow
def test_clients_are_taken_independently_with_their_chances_and_never_twice():
  (layer,) = importance(8, 3)
  cohort, metrics = drawn(layer, Seen(jnp.asarray(VALUES), jnp.ones(8, bool)))
  chance = np.asarray(inclusion(jnp.asarray(VALUES), 3, 0.1), np.float64)
  taken = np.zeros((DRAWS, 8), int)
  for place in range(cohort.id.shape[1]):
    real = cohort.real[:, place]
    np.add.at(taken, (np.flatnonzero(real), cohort.id[real, place]), 1)
  assert taken.max() == 1 and (cohort.id[~cohort.real] == 8).all()
  for client in range(8):
    hits = int(taken[:, client].sum())
    assert chance[client] == 1 or stats.binomtest(hits, DRAWS, chance[client]).pvalue > 1e-5
  both = int((taken[:, 2] & taken[:, 5]).sum())
  assert stats.binomtest(both, DRAWS, chance[2] * chance[5]).pvalue > 1e-5
  np.testing.assert_allclose(cohort.chance[cohort.real], chance[cohort.id[cohort.real]], rtol=1e-5)
  np.testing.assert_allclose(metrics['least_chance'], chance.min(), rtol=1e-5)
  assert not metrics['overflow'].any()


def test_a_cohort_beyond_its_capacity_is_cut_uniformly_and_reported():
  (layer,) = importance(8, 3, explore=1.0, capacity=3)  # all alike
  cohort, metrics = drawn(layer, Seen(jnp.asarray(VALUES), jnp.ones(8, bool)))
  assert (
    stats.binomtest(int(metrics['overflow'].sum()), DRAWS, stats.binom(8, 3 / 8).sf(3)).pvalue
    > 1e-5
  )
  cut = cohort.id[metrics['overflow'] == 1]
  assert cut.max() < 8 and stats.chisquare(np.bincount(cut.ravel(), minlength=8)).pvalue > 1e-5


def test_the_default_capacity_hardly_ever_overflows():
  (layer,) = importance(10_000, 50)
  capacity = layer.fact(Draws).capacity
  chance = np.r_[np.ones(20), np.full(9980, 30 / 9980)]  # less spread than the binomial law
  tail = stats.binom(9980, chance[-1]).sf(capacity - 20)
  assert tail <= 1e-9 and capacity < 120
  assert importance(4, 4)[0].fact(Draws).capacity == 4


SIZES = np.array(tiny.COUNTS, np.float64)


def gradient(params, client):
  data = {k: jnp.asarray(v) for k, v in tiny.DATA[client].items()}
  mean = lambda p: tiny.loss(p, data).mean()
  return tiny.vec(jax.grad(mean)(params)), float(mean(params))


@pytest.mark.slow
@pytest.mark.parametrize('by', ('norm', 'loss'))
@pytest.mark.parametrize('divisor', (None, float(SIZES.sum())))
@pytest.mark.parametrize('weigh', (by_examples, equal))
def test_rounds_equal_a_plain_loop(by, divisor, weigh):
  made = importance(10, 4, by=by, loss=tiny.loss, sizes=tiny.COUNTS, capacity=10)
  first, rest = (made[:1], made[1:]) if by == 'loss' else ((), made)
  sim = tiny.build(compose(*first, tiny.algorithm(0.5), weigh(divisor), *rest))
  state = sim.init(tiny.initial())
  params, value, seen = tiny.initial(), np.zeros(10), np.zeros(10, bool)
  for _ in range(3):
    state, metrics = sim.run(state, 1)
    rate = value[seen].sum() / SIZES[seen].sum() if seen.any() else 1.0
    chance = twin(np.where(seen, value, rate * SIZES), 4, 0.1)
    assert metrics['select/least_chance'][0] == pytest.approx(chance.min(), rel=1e-4)
    ids = metrics['ids'][0]
    total, weights, flat = 0.0, 0.0, tiny.vec(params)
    for i in ids[ids >= 0]:
      update, loss = gradient(params, i)
      w = SIZES[i] if weigh is by_examples else 1.0
      total, weights = total + w / chance[i] * update, weights + w / chance[i]
      value[i] = w * np.linalg.norm(update) if by == 'norm' else SIZES[i] * loss
      seen[i] = True
    flat -= 0.5 * total / (weights if divisor is None else divisor)
    params = {'b': jnp.asarray(flat[:3], jnp.float32)}
    params['w'] = jnp.asarray(flat[3:].reshape(5, 3), jnp.float32)
    np.testing.assert_allclose(tiny.vec(state.params), flat, rtol=2e-5, atol=2e-6)


def test_it_must_come_after_the_weighing():
  layers = compose(given.algorithm(), importance(9, 3)[0], equal())
  pop = given.population({'a': np.ones((9, 2), np.float32)})
  with pytest.raises(IncompatibleStages, match=r"'select' .* must come after 'weigh'"):
    simulate(layers, {'a': jnp.zeros(2)}, pop)


@pytest.mark.first(5)
@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'explore': 0}, r'explore must be a number in \(0, 1\], got 0'),
    ({'by': 'norms'}, "by must be one of 'norm', 'loss', got 'norms'. Did you mean 'norm'"),
    ({'by': 'loss'}, 'loss must be callable, got None'),
    ({'sizes': [1, 2]}, 'sizes must be 5 finite numbers > 0, one a client, got .1, 2'),
    ({'sizes': [1, 2, 3, 0, 1]}, 'sizes must be 5 finite numbers > 0'),
    ({'capacity': 6}, 'capacity must be an integer >= 1 and <= 5, got 6'),
  ],
)
def test_bad_arguments(options, message):
  with pytest.raises(ValueError, match=message):
    importance(5, 2, **options)
