"""Released sums: noise accepted at its scale, rejected at 2/3 and 3/2; fresh in every round."""

import functools

import numpy as np
import pytest
from reference import given
from scipy import stats

from fedjax_mem.core import Bounds, Layer, Stage
from fedjax_mem.stages import privacy
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import equal

C, Z = 0.3, 0.8
CLIENTS = 3
# name -> (layer, law of a released value, its scale)
CASES = {
  'central': (lambda: privacy.central(C, Z), stats.norm, C * Z),
  'per layer': (lambda: privacy.central(C, Z, per_layer=True), stats.norm, C * Z),
  'discrete': (lambda: privacy.central(C, Z, mechanism='discrete_gaussian'), stats.norm, C * Z),
  'laplace': (lambda: privacy.laplace(C, Z), stats.laplace, C * Z),
  'adaptive': (
    lambda: privacy.adaptive_clip(Z, 60.0, initial_l2_clip_norm=C),
    stats.norm,
    C * (Z**-2 - 6.0**-2) ** -0.5,
  ),
  'local': (lambda: privacy.local(C, Z), stats.norm, C * Z * np.sqrt(CLIENTS)),
  'tree': (lambda: privacy.tree(C, Z, 1), stats.norm, C * Z),
  'matrix': (lambda: privacy.matrix_factorization(C, Z, 4), stats.norm, C * Z),
}


@functools.cache
def simulation(name):
  return given.build(given.silence(), CASES[name][0]())


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_the_noise_has_its_scale_and_no_other(name):
  _, law, scale = CASES[name]
  got = given.sums(simulation(name))[0]
  assert stats.kstest(got, law(scale=scale).cdf).pvalue > 1e-3
  for wrong in (2 / 3, 3 / 2):
    assert stats.kstest(got, law(scale=scale * wrong).cdf).pvalue < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_the_noise_is_fresh_in_every_round_and_seed_and_array(name):
  sim = simulation(name)
  first, second, third = given.sums(sim, rounds=3)
  (other,) = given.sums(sim, seed=4)
  half = len(first) // 2
  pairs = [
    (first, second),
    (second, third),
    (first, third),
    (first, other),
    (first[:half], first[half:]),
  ]
  for a, b in pairs:
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(len(a))


@pytest.mark.slow
def test_each_local_client_draws_noise_of_its_own():
  updates = given.silence(10_000, clients=2)
  alone, both = (
    given.sums(given.build(updates, privacy.local(C, Z), select=round_robin(2, n)), 2)
    for n in (1, 2)
  )
  # Client 0 takes part in the first round of both; the rest of the common sum is client 1's.
  assert stats.kstest(both[0] - alone[0], stats.norm(scale=C * Z).cdf).pvalue > 1e-3
  assert abs(np.corrcoef(both[0] - alone[0], alone[0])[0, 1]) < 0.05
  assert abs(np.corrcoef(alone[0], alone[1])[0, 1]) < 0.05


@pytest.mark.slow
def test_the_noise_is_scaled_for_the_sum_and_then_divided():
  sim = given.build(given.silence(), privacy.central(C, Z), weigh=equal(50.0))
  assert stats.kstest(given.sums(sim)[0], stats.norm(scale=C * Z / 50).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_the_noise_asks_the_layers_after_it_what_they_make_of_the_bound():
  passes = lambda ctx, value, state: (value, state, {})
  wider = Layer('encode', client=Stage(passes, facts=(Bounds(lambda ctx, b: b.scaled(2.5)),)))
  for layer in (privacy.central(C, Z), privacy.adaptive_clip(Z, 1e6, initial_l2_clip_norm=C)):
    got = given.sums(given.build(given.silence(), layer, wider))[0]
    assert stats.kstest(got, stats.norm(scale=2.5 * C * Z).cdf).pvalue > 1e-3


@pytest.mark.slow
def test_the_count_of_an_adaptive_clip_has_noise_of_its_own():
  layer = privacy.adaptive_clip(Z, 3.0, initial_l2_clip_norm=C, bit_noise=2.0, learning_rate=1e-6)
  updates = {'a': np.zeros((CLIENTS, 1), np.float32)}
  sim = given.build(updates, layer)
  runs = [given.play(sim, 16, seed=seed)[1] for seed in range(25)]
  noisy = np.array([m['adaptive_clip/below'] for metrics in runs for m in metrics])
  law = lambda scale: stats.norm(loc=1.0, scale=scale).cdf  # all three bits set, of 3 expected
  assert stats.kstest(noisy, law(2 / 3)).pvalue > 1e-3
  for wrong in (2 / 3, 3 / 2):
    assert stats.kstest(noisy, law(2 / 3 * wrong)).pvalue < 1e-3
