"""The codec that adds: integers on a public grid whose sum cannot overflow."""

import subprocess
import sys

import numpy as np
import pytest
from reference import given
from reference.loop import plain_round
from scipy import stats

from fedjax_mem.core import UNKNOWN, Bound, Bounds, tree
from fedjax_mem.stages import privacy
from fedjax_mem.stages.masks import integers, mask

RANGE, CLIENTS = 0.5, 5
RNG = np.random.default_rng(0)
UPDATES = {
  'a': RNG.uniform(-RANGE, RANGE, (CLIENTS, 40, 50)).astype(np.float32),
  'b': RNG.uniform(-RANGE, RANGE, (CLIENTS, 7)).astype(np.float32),
}


def levels(bits, clients=CLIENTS):
  return (2 ** (bits - 1) - 1) // clients


@pytest.fixture(scope='module')
def coarse():
  return given.build(UPDATES, integers(RANGE, clients=CLIENTS, bits=8))


def total(updates):
  return np.concatenate([v.astype(np.float64).sum(0).ravel() for v in updates.values()])


@pytest.mark.slow
def test_the_sum_is_right_up_to_the_rounding_and_unbiased(coarse):
  got = given.sums(coarse, 16)
  step = RANGE / levels(8)
  error = got - total(UPDATES)[None]
  assert np.abs(error).max() < CLIENTS * step
  assert np.abs(error).max() > step / 2  # it does round
  # The sum of 5 roundings has a variance of at most 5 step² / 4.
  mean = error.mean(0)
  assert np.abs(mean).max() < 5 * step * np.sqrt(CLIENTS / 4 / 16)
  assert abs(error.mean()) < 5 * step * np.sqrt(CLIENTS / 4 / error.size)


@pytest.mark.slow
def test_the_messages_are_the_integers_next_to_the_values(coarse):
  messages = plain_round(
    coarse.setting.layers, coarse.init(tree.zeros(coarse.params)), coarse.population, 3
  ).messages
  top = levels(8)
  assert CLIENTS * top <= 127
  for i, message in enumerate(messages):
    for name, value in message.update.items():
      exact = UPDATES[name][i].astype(np.float64) / RANGE * top
      assert value.dtype == np.int32
      assert (np.abs(np.asarray(value) - exact) < 1 + 1e-4).all()
      assert np.abs(value).max() <= top


@pytest.mark.slow
def test_values_at_the_limit_fill_the_range_and_never_wrap():
  """All clients at the limit, of either sign, in as few bits as there may be."""
  for sign in (1.0, -1.0):
    updates = {'a': np.full((CLIENTS, 9), sign * RANGE, np.float32)}
    (got,), (metrics,), _ = given.play(given.build(updates, integers(RANGE, clients=5, bits=4)))
    np.testing.assert_allclose(got['a'], sign * CLIENTS * RANGE, rtol=1e-6)
    assert metrics['integers/filled'] == 5 / 8 and metrics['integers/outside'] == 0


@pytest.mark.slow
def test_values_beyond_the_range_are_clipped_and_counted(coarse):
  wide = {k: v.copy() for k, v in UPDATES.items()}
  wide['a'][1, :4] = 7.0  # 200 of 2007 values of one client
  (got,), (metrics,), _ = given.play(coarse, updates=wide)
  assert np.isclose(metrics['integers/outside'], 200 / 2007 / CLIENTS)
  assert np.abs(got['a']).max() <= CLIENTS * RANGE * (1 + 1e-6)
  clipped = {k: np.clip(v, -RANGE, RANGE) for k, v in wide.items()}
  off = np.concatenate([got['a'].ravel(), got['b']]) - total(clipped)
  assert np.abs(off).max() < CLIENTS * RANGE / levels(8)


@pytest.mark.slow
def test_a_client_without_weight_or_with_a_broken_update_sends_zeros():
  wide = {'a': np.full((2, 8), 0.25, np.float32)}
  wide['a'][1] = 3e38  # finite, and infinite on the grid
  fine = given.build(wide, integers(RANGE, clients=2, bits=32))
  np.testing.assert_allclose(given.sums(fine)[0], 0.25, atol=1e-6)


def grown(bound, **options):
  """Returns the bound of what the layer gives back for what enters it."""
  layer = integers(RANGE, clients=CLIENTS, bits=8, **options)
  coded = layer.client.fact(Bounds).of(None, bound)
  return layer.server.fact(Bounds).of(None, coded)


def test_the_bound_grows_by_the_rounding():
  step = RANGE / levels(8)
  bound = grown(Bound(1.0, 0.4, 0.3), dimension=100)
  assert np.allclose(bound[:3], (1.0 + 100 * step, 0.4 + 10 * step, RANGE))
  assert grown(Bound(1.0, 0.4))[:2] == (UNKNOWN, UNKNOWN)
  # No update on the grid is beyond it.
  x = RNG.normal(size=(200, 100))
  x *= 0.4 / np.linalg.norm(x, axis=1, keepdims=True)
  worst = np.sign(x) * np.ceil(np.abs(x) / step) * step
  assert np.linalg.norm(worst, axis=1).max() <= bound.l2


@pytest.mark.slow
def test_noise_on_the_server_is_scaled_to_the_rounded_updates():
  silence = given.silence(4000, clients=3)
  coarse = integers(0.1, clients=3, bits=6, dimension=4000)
  sim = given.build(silence, privacy.central(0.1, 1.0), coarse, mask(clients=3, bits=6))
  grown = 0.1 + 0.1 / levels(6, 3) * np.sqrt(4000)
  got = given.sums(sim)[0]
  assert grown > 0.7 and stats.kstest(got, stats.norm(scale=grown).cdf).pvalue > 1e-3
  for wrong in (2 / 3, 3 / 2):
    assert stats.kstest(got, stats.norm(scale=grown * wrong).cdf).pvalue < 1e-12


@pytest.mark.parametrize(
  'name, value',
  [('value_range', 0.0), ('clients', 0), ('bits', 1), ('bits', 33), ('dimension', 0)],
)
def test_bad_arguments_are_refused(name, value):
  with pytest.raises(ValueError, match=f'{name} must be .*got {value}'):
    integers(**({'value_range': 1.0, 'clients': 4} | {name: value}))


def test_too_few_bits_for_the_clients_are_refused():
  integers(1.0, clients=127, bits=8)
  with pytest.raises(ValueError, match='bits must be at least 9 to hold the sum of 128 clients'):
    integers(1.0, clients=128, bits=8)


def test_more_values_than_stated_are_refused():
  with pytest.raises(ValueError, match='dimension must be at least the 2007 values'):
    given.build(UPDATES, integers(RANGE, clients=CLIENTS, dimension=2000))


@pytest.mark.slow
def test_the_layers_need_no_cryptography():
  code = (
    "import sys, fedjax_mem.stages.masks as s; sys.exit('cryptography' in sys.modules or "
    "set(s.SECURE) != {'integers', 'mask'})"
  )
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
