"""From a table to clients: their names, their test examples, and noise on their inputs."""

import numpy as np
import pytest

from fedjax_mem.data.preprocess import Inputs
from fedjax_mem.data.table import Table, distribute, hold_out

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (400, 5, 5)).astype(np.uint8)
Y = RNG.integers(0, 4, 400).astype(np.int32)
IDS = np.repeat(np.arange(4, dtype=np.int32), 100)
TABLE = Table(
  'toy', {'x': X, 'y': Y}, {'x': X[:6], 'y': Y[:6]}, 4, (5, 5, 1), Inputs((5, 5, 1), 255.0)
)
NATURAL = TABLE._replace(
  client_ids=IDS,
  clients=('a', 'b', 'c', 'd'),
  test_client_ids=np.array([0, 1, 2, 3, 3, -1], np.int32),
)


def test_without_owners_the_default_is_iid():
  data = distribute(TABLE, num_clients=8)
  assert data.counts.tolist() == [50] * 8 and data.clients is None
  with pytest.raises(ValueError, match="must be another than 'natural' for 'toy'"):
    distribute(TABLE, 'natural')


def test_with_owners_the_default_is_natural():
  data = distribute(NATURAL)
  assert data.clients == ('a', 'b', 'c', 'd')
  assert data.test_clients.tolist() == [0, 1, 2, 3, 3, -1]
  assert np.array_equal(data.rows(2), np.arange(200, 300))


def test_fewer_clients_keep_their_names_and_test_examples():
  data = distribute(NATURAL, num_clients=2, seed=5)
  chosen = ['abcd'.index(name) for name in data.clients]
  expected = [chosen.index(c) if c in chosen else -1 for c in [0, 1, 2, 3, 3, -1]]
  assert data.test_clients.tolist() == expected
  assert np.array_equal(data.rows(1), np.arange(100 * chosen[1], 100 * chosen[1] + 100))


def test_owners_do_not_bind_another_partition():
  data = distribute(NATURAL, 'iid', 8)
  assert data.clients is None and data.test_clients is None and data.num_clients == 8


def test_a_column_makes_clients_by_its_name_or_number():
  x = np.stack([np.arange(400.0) % 5, np.arange(400.0) // 100], axis=1).astype(np.float32)
  sites = np.array(['north', 'south', 'west'])[np.arange(400) % 3]
  table = TABLE._replace(arrays={'x': x, 'y': Y}, columns={'site': sites}, input_shape=(2,))
  data = distribute(table, 'column', column='site')
  assert data.clients == ('north', 'south', 'west') and set(data.arrays) == {'x', 'y'}
  assert (sites[data.rows(1)] == 'south').all()
  assert distribute(table, 'column', column=1).clients == ('0.0', '1.0', '2.0', '3.0')
  labels = distribute(hold_out(table, 0.1, 1), 'column', column='y')
  assert all((Y[labels.rows(k)] == k).all() for k in range(4)) and len(labels.index) == 360
  assert distribute(NATURAL, 'column', column='y').test_clients is None
  bad = [(table, 'sit', "Did you mean 'site'"), (table, 2, '<= 1, got 2'), (TABLE, 0, 'be a name')]
  for of, name, message in (*bad, (table, [1], r'got \[1\]')):
    with pytest.raises(ValueError, match=message):
      distribute(of, 'column', column=name)
  with pytest.raises(ValueError, match='must be given column'):
    distribute(table, 'column')


def test_feature_noise_has_its_variance_and_spares_the_test_set():
  sigma, clients = 0.25, 4
  clean = distribute(TABLE, 'iid', clients, 3)
  noisy = distribute(TABLE, 'feature_noise', clients, 3, sigma=sigma)
  assert np.array_equal(clean.index, noisy.index)
  before = clean.preprocess(clean.arrays)['x']
  after = noisy.preprocess(noisy.arrays)['x']
  assert after.dtype == np.float32 and after.shape == before.shape
  for client in range(clients):
    rows = noisy.rows(client)
    variance = (after[rows] - before[rows]).astype(np.float64).var()
    # 2,500 values a client: the variance of a sample is within 5 * sqrt(2 / 2500) of the truth.
    assert abs(variance / (sigma * (client + 1) / clients) - 1) < 5 * np.sqrt(2 / 2500)
  assert np.array_equal(noisy.preprocess(noisy.test)['x'], clean.preprocess(clean.test)['x'])


def test_noise_is_a_function_of_the_seed():
  first, again, other = (
    distribute(TABLE, 'feature_noise', 4, seed, sigma=0.1).arrays['x'] for seed in (3, 3, 4)
  )
  assert np.array_equal(first, again) and not np.array_equal(first, other)
