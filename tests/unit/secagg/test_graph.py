"""The graph of SecAgg+: regular, its bound against draws, its degrees against published ones."""

import numpy as np
import pytest

from fedjax_mem.secagg import graph, protocol

# Degrees of Google's implementation of the same bound (federated-compute, its tests of
# `graph_parameter_finder`): n, corrupt, dropout, k; sigma = 40, eta = 20.
PUBLISHED = [
  (100, 0.45, 0.45, 92),
  (100, 0.33, 0.33, 68),
  (1000, 0.33, 0.33, 286),
  (10_000, 0.33, 0.33, 422),
  (1_000_000, 0.33, 0.33, 518),
  (100, 0.05, 0.33, 28),
  (1000, 0.05, 0.33, 72),
  (10_000, 0.05, 0.33, 86),
  (1_000_000, 0.05, 0.33, 102),
  (100, 0.33, 0.05, 34),
  (1000, 0.33, 0.05, 78),
  (1_000_000, 0.33, 0.05, 110),
]


@pytest.mark.first(2)
@pytest.mark.parametrize(('n', 'corrupt', 'dropout', 'neighbours'), PUBLISHED)
def test_degrees_are_the_published_ones(n, corrupt, dropout, neighbours):
  found = graph.degree(n, corrupt=corrupt, dropout=dropout, sigma=40, eta=20)
  assert found.neighbours == neighbours
  assert 2 <= found.threshold <= found.neighbours


@pytest.mark.slow
def test_a_billion_clients_cost_less_than_all_pairs_of_a_thousand():
  """The claim in the paper's abstract."""
  assert graph.degree(10**9, corrupt=0.33, dropout=0.33).neighbours < 999


@pytest.mark.parametrize(('n', 'k'), [(5, 2), (12, 4), (31, 10), (40, 38)])
def test_every_client_has_k_neighbours_and_links_are_mutual(n, k):
  rows = graph.neighbourhoods(n, k, b's' * 16)
  assert rows.shape == (n, k + 1)
  linked = np.zeros((n, n), bool)
  linked[np.arange(n)[:, None], rows] = True
  assert (linked.sum(1) == k + 1).all()
  assert linked.diagonal().all()
  assert (linked == linked.T).all()
  assert (np.diff(rows, axis=1) > 0).all()


def test_the_seed_alone_decides():
  first, again, other = (graph.ring(50, seed) for seed in (b'a' * 16, b'a' * 16, b'b' * 16))
  assert (first == again).all()
  assert (first != other).any()
  assert sorted(first.tolist()) == list(range(50))


def draws(n, bad, gone, count):
  """Yields who is corrupt and who dropped out, in the order of the ring: [n] bools each."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    corrupt, dropped = np.zeros(n, bool), np.zeros(n, bool)
    corrupt[rng.choice(n, bad, replace=False)] = True
    dropped[rng.choice(n, gone, replace=False)] = True
    yield corrupt, dropped


def around(marks, k):
  """Returns how many of each client's neighbours are marked, [n]."""
  steps = [s for s in range(-(k // 2), k // 2 + 1) if s]
  return sum(np.roll(marks, s).astype(int) for s in steps)


def connected(left, k):
  """Returns whether the clients left are connected: at most one gap of k / 2 or more."""
  places = np.flatnonzero(left)
  gaps = np.diff(np.concatenate([places, places[:1] + len(left)])) - 1
  return (gaps >= k // 2).sum() <= 1


@pytest.mark.slow
def test_failures_are_as_rare_as_the_bound_says():
  """At small sigma and eta, where failures are seen: not more than stated, and not far fewer."""
  n, corrupt, dropout, sigma, eta, count = 60, 0.2, 0.2, 3, 3, 4000
  degree = graph.degree(n, corrupt=corrupt, dropout=dropout, sigma=sigma, eta=eta)
  k, t = degree.neighbours, degree.threshold
  bad, gone = int(corrupt * n), int(dropout * n)
  failed = np.zeros(3)
  for corrupted, dropped in draws(n, bad, gone, count):
    failed += (
      (around(corrupted, k)[~corrupted] >= t).any(),
      not connected(~(corrupted | dropped), k),
      (around(~dropped, k) < t).any(),
    )
  rates = failed / count
  allowed = np.array([2.0 ** -(sigma + 1), 2.0 ** -(sigma + 1), 2.0**-eta])
  noise = 4 * np.sqrt(allowed / count)
  assert (rates <= allowed + noise).all(), rates
  bounds = [
    graph.corrupt_bound(n, k, t, bad),
    graph.cut_bound(n, k, bad + gone),
    graph.dropout_bound(n, k, t, gone),
  ]
  assert (rates <= np.array(bounds) + noise).all(), (rates, bounds)
  # One neighbour pair less does not do: the degree is the smallest.
  smaller = [
    (graph.corrupt_bound(n, k - 2, s, bad) <= allowed[0])
    and (graph.dropout_bound(n, k - 2, s, gone) <= allowed[2])
    for s in range(2, k - 1)
  ]
  assert not any(smaller) or graph.cut_bound(n, k - 2, bad + gone) > allowed[1]


def test_the_bounds_are_not_vacuous():
  """With the thresholds moved to where they must fail, the draws do fail, and the bounds say so."""
  n, k, bad, gone, count = 60, 8, 12, 12, 500
  low, high = 3, 7
  found = [
    ((around(c, k)[~c] >= low).any(), (around(~d, k) < high).any())
    for c, d in draws(n, bad, gone, count)
  ]
  rates = np.mean(found, axis=0)
  assert (rates > 0.5).all()
  assert graph.corrupt_bound(n, k, low, bad) >= rates[0]
  assert graph.dropout_bound(n, k, high, gone) >= rates[1]


@pytest.mark.parametrize(
  ('wrong', 'problem'),
  [
    ({'num_clients': 2}, 'num_clients must be'),
    ({'corrupt': 1.0, 'dropout': 0.0}, 'corrupt must be below 1'),
    ({'dropout': 1.0, 'corrupt': 0.0}, 'dropout must be below 1'),
    ({'dropout': -0.1}, 'dropout must be'),
    ({'corrupt': 0.5, 'dropout': 0.5}, r'corrupt \+ dropout must be below 1'),
    ({'sigma': 0}, 'sigma must be'),
    ({'eta': 0}, 'eta must be'),
    ({'num_clients': 8, 'corrupt': 0.4, 'dropout': 0.4}, 'num_clients must be larger'),
  ],
)
def test_what_no_graph_can_do_is_refused(wrong, problem):
  given = {'num_clients': 100, 'corrupt': 0.1, 'dropout': 0.1, **wrong}
  with pytest.raises(ValueError, match=problem):
    graph.degree(given.pop('num_clients'), **given)


@pytest.mark.parametrize(
  ('n', 'k', 't', 'problem'),
  [
    (1, None, 1, 'num_clients must be'),
    (4, None, 2, 'threshold must be above 1/2'),
    (4, None, 5, 'threshold must be'),
    (4, None, True, 'threshold must be'),
    (8, 3, 2, 'neighbours must be even'),
    (8, 7, 2, 'neighbours must be'),
    (8, 4, 5, 'threshold must be'),
    (8, 4, 1, 'threshold must be'),
  ],
)
def test_a_degree_is_of_numbers_that_fit_each_other(n, k, t, problem):
  with pytest.raises(ValueError, match=problem):
    graph.Degree(n, k, t)


@pytest.mark.parametrize('n', range(2, 13))
def test_all_pairs_have_the_least_threshold_that_protects(n):
  assert graph.complete(n) == graph.Degree(n, None, n // 2 + 1)
  found = graph.complete(n, active=True).threshold
  assert 3 * (found - 1) <= 2 * n < 3 * found


def test_a_session_takes_a_degree_and_no_threshold_beside_it():
  given = {'name': bytes(16), 'size': 5, 'bound': 9}
  with pytest.raises(TypeError, match='threshold'):
    protocol.Session(**given, degree=graph.complete(4), threshold=2)
  with pytest.raises(ValueError, match='degree must be a Degree'):
    protocol.Session(**given, degree=(4, None, 3))
