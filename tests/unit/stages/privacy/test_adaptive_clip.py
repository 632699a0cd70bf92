"""Adaptive clipping against a NumPy twin of Andrew et al. (2021)."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny

from fedjax_mem.core import Message, Noises
from fedjax_mem.kernels.random import noise
from fedjax_mem.stages import privacy

Z, EXPECTED = 0.4, 6.0
rng = np.random.default_rng(3)
UPDATES = {'a': (rng.normal(size=(6, 8)) * np.geomspace(0.01, 10, 6)[:, None]).astype(np.float32)}


def layer(z=Z, **options):
  return privacy.adaptive_clip(z, EXPECTED, initial_l2_clip_norm=0.2, **options)


@pytest.mark.slow
@pytest.mark.parametrize('z, sigma_b', [(Z, None), (Z, 0.7), (0.0, None)])
def test_four_rounds_are_their_numpy_twin(z, sigma_b):
  made = layer(z, quantile=0.7, learning_rate=0.3, bit_noise=sigma_b)
  released, metrics, _ = given.play(given.build(UPDATES, made), 4)
  rows, bound = UPDATES['a'].astype(np.float64), 0.2
  sigma = EXPECTED / 20 if sigma_b is None else sigma_b
  delta = (z**-2 - (2 * sigma) ** -2) ** -0.5 if z else 0
  norms = np.linalg.norm(rows, axis=1)
  for t in range(4):
    sum_key, count_key = jax.random.split(given.server_key('adaptive_clip', t))
    like = {'a': jax.ShapeDtypeStruct((8,), jnp.float32)}
    total = (rows * np.minimum(1, bound / norms)[:, None]).sum(0)
    total += tiny.vec(noise.gaussian(sum_key, like, 1.0)) * delta * bound
    np.testing.assert_allclose(released[t]['a'], total, rtol=2e-4, atol=1e-5)
    count = ((norms <= bound) - 0.5).sum()
    count += float(jax.random.normal(count_key, (1,))[0]) * (sigma if z else 0)
    below = count / EXPECTED + 0.5
    assert metrics[t]['adaptive_clip/below'] == pytest.approx(below, abs=1e-5)
    assert metrics[t]['adaptive_clip/bound'] == pytest.approx(bound, rel=1e-5)
    bound *= np.exp(-0.3 * (below - 0.7))


def test_the_two_releases_cost_what_one_gaussian_does():
  made = layer()
  mechanism = made.fact(Noises).mechanism
  sigma = EXPECTED / 20
  delta = (Z**-2 - (2 * sigma) ** -2) ** -0.5
  # Squared multipliers add inversely; the bit's sensitivity is 1/2.
  assert mechanism.noise_multiplier == Z
  assert (delta**-2 + (sigma / 0.5) ** -2) ** -0.5 == pytest.approx(Z)
  assert delta > Z


@pytest.mark.parametrize('z', [0.6, 0.7])
def test_a_count_that_spends_everything_is_refused(z):
  with pytest.raises(ValueError, match=r'noise_multiplier must be below 2 bit_noise = 0\.6'):
    layer(z)
  layer(z, bit_noise=0.4)


@pytest.mark.slow
def test_the_bound_of_a_round_comes_from_earlier_rounds_only():
  sim = given.build(UPDATES, layer())
  _, _, state = given.play(sim, 1)
  other = {'a': UPDATES['a'] * 100}
  one = given.play(sim, 1, state=state)
  two = given.play(sim, 1, state=state, updates=other)
  assert one[1][0]['adaptive_clip/bound'] == two[1][0]['adaptive_clip/bound']
  assert one[2].servers['adaptive_clip'] != two[2].servers['adaptive_clip']


@pytest.mark.slow
def test_it_finds_the_quantile():
  many = {'a': (rng.normal(size=(60, 8)) * rng.uniform(0.5, 2, (60, 1))).astype(np.float32)}
  made = privacy.adaptive_clip(0.4, 60.0, initial_l2_clip_norm=0.1, quantile=0.8, learning_rate=0.5)
  sim = given.build(many, made)
  _, _, state = given.play(sim, 60)
  norms = np.linalg.norm(many['a'], axis=1)
  assert (norms <= float(state.servers['adaptive_clip'])).mean() == pytest.approx(0.8, abs=0.1)


@pytest.mark.slow
def test_count_and_sum_have_noise_of_their_own():
  sim = given.build({'a': np.zeros((2, 1), np.float32)}, privacy.adaptive_clip(1.0, 20.0))
  sums, counts = [], []
  for seed in range(40):
    released, metrics, _ = given.play(sim, 8, seed=seed)
    sums += [
      float(r['a'][0]) / m['adaptive_clip/bound'] for r, m in zip(released, metrics, strict=True)
    ]
    counts += [m['adaptive_clip/below'] for m in metrics]
  assert abs(np.corrcoef(sums, counts)[0, 1]) < 4 / np.sqrt(len(sums))


@pytest.mark.parametrize(
  'option',
  [{'quantile': 1.2}, {'learning_rate': 0.0}, {'bit_noise': -1.0}, {'quantile': float('nan')}],
)
def test_bad_options_are_refused_by_name(option):
  with pytest.raises(ValueError, match=f'{next(iter(option))} must be'):
    layer(**option)


@pytest.mark.parametrize('weight, norm, bit', [(1.0, 0.1, 0.5), (1.0, 3.0, -0.5), (0.0, 0.1, 0.0)])
def test_a_client_tells_whether_it_is_within_the_bound_if_it_takes_part(weight, norm, bit):
  message = Message({'a': jnp.array([norm, 0], jnp.float32)}, jnp.float32(weight), {})
  context = SimpleNamespace(server_state=jnp.float32(1.0))
  told, _, _ = layer().client.apply(context, message, ())
  assert told.aux['below'] == bit
