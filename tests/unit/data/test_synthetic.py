"""Synthetic(alpha, beta) against a plain loop, and alpha, beta as standard deviations."""

import numpy as np
import pytest

from fedjax_mem.data.synthetic import load_synthetic
from fedjax_mem.data.table import distribute


def plain(alpha, beta, iid, num_clients, seed):
  """The published generator, one example at a time, on the same draws."""
  rng = np.random.default_rng(seed)
  sizes = rng.lognormal(4, 2, num_clients).astype(int) + 50
  u = np.zeros(num_clients) if iid else rng.normal(0, alpha, num_clients)
  b_mean = rng.normal(0, beta, num_clients)
  shared = rng.normal(0, 1, (61, 10))
  clients = []
  for k in range(num_clients):
    model = shared if iid else rng.normal(u[k], 1, (61, 10))
    v = np.zeros(60) if iid else rng.normal(b_mean[k], 1, 60)
    noise = rng.standard_normal((sizes[k], 60))
    x = np.stack([v + np.sqrt(np.diag([(j + 1) ** -1.2 for j in range(60)])) @ e for e in noise])
    y = [int(np.argmax(model[:60].T @ row + model[60])) for row in x]
    clients.append((x, y))
  return clients


@pytest.mark.parametrize('iid', [False, True])
def test_equals_the_plain_loop_and_splits_each_client(iid):
  table = load_synthetic(alpha=0.5, beta=0.5, iid=iid, num_clients=4, seed=2)
  data = distribute(table)
  for k, (x, y) in enumerate(plain(0.5, 0.5, iid, 4, 2)):
    cut = int(0.9 * len(y))
    rows = data.rows(k)
    assert np.allclose(data.arrays['x'][rows], x[:cut], atol=1e-5)
    assert data.arrays['y'][rows].tolist() == y[:cut]
    mine = data.test_clients == k
    assert np.allclose(data.test['x'][mine], x[cut:], atol=1e-5)
    assert data.test['y'][mine].tolist() == y[cut:]


def test_beta_is_a_standard_deviation():
  table = load_synthetic(alpha=0, beta=4.0, num_clients=400, seed=0)
  sums = np.zeros(400)
  np.add.at(sums, table.client_ids, table.arrays['x'].mean(1))
  centers = sums / np.bincount(table.client_ids)
  # Of 400 clients: within 5 standard errors of 4, far from 2, were beta a variance.
  assert abs(centers.std() - 4.0) < 5 * 4 / np.sqrt(2 * 400)


def test_alpha_changes_no_label():
  none, much = (load_synthetic(alpha=a, beta=1.0, num_clients=5) for a in (0.0, 3.0))
  assert np.array_equal(none.arrays['x'], much.arrays['x'])
  assert np.array_equal(none.arrays['y'], much.arrays['y'])


def test_iid_clients_share_one_distribution_with_the_published_covariance():
  table = load_synthetic(iid=True, num_clients=60, seed=1)
  variance = table.arrays['x'].var(0)
  expected = np.arange(1, 61) ** -1.2
  assert np.all(np.abs(variance / expected - 1) < 6 * np.sqrt(2 / len(table.arrays['y'])))
  assert table.name == 'synthetic_iid'


def test_default_is_the_paper_s():
  table = load_synthetic()
  assert len(table.clients) == 30 and table.input_shape == (60,) and table.num_classes == 10
  assert np.bincount(table.client_ids).min() >= 45


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'alpha': -1}, 'alpha must be'),
    ({'beta': float('inf')}, 'beta must be'),
    ({'num_clients': 0}, 'num_clients must be'),
    ({'seed': -1}, 'seed must be'),
  ],
)
def test_bad_arguments_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    load_synthetic(**options)
