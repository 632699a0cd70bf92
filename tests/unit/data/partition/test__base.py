"""Partitions: every example at most once, a function of the seed, and the published semantics."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fedjax_mem.data.partition import PARTITIONS, Partition, partition

LABELS = np.random.default_rng(7).integers(0, 10, 3000)
OPTIONS = {
  'iid': {},
  'blocks': {},
  'dirichlet': {'alpha': 0.5},
  'flower_dirichlet': {'alpha': 0.5},
  'inner_dirichlet': {'alpha': 0.5},
  'labels_per_client': {'labels_per_client': 3},
  'quantity_skew': {'alpha': 0.5},
  'sizes': {'law': 'log_normal', 'sigma': 0.5},
  'feature_noise': {'sigma': 0.1},
  'natural': {'client_ids': np.random.default_rng(1).integers(0, 20, 3000)},
  'column': {'column': np.random.default_rng(2).permutation(np.arange(3000) % 20)},
}


def rows(parts, client):
  return parts.index[parts.offsets[client] : parts.offsets[client + 1]]


def test_every_partition_is_exercised():
  assert set(OPTIONS) == set(PARTITIONS)


@pytest.mark.parametrize('name', OPTIONS)
def test_covers_every_example_exactly_once(name):
  parts = partition(name, LABELS, 20, seed=3, **OPTIONS[name])
  assert np.array_equal(np.sort(parts.index), np.arange(3000))
  assert parts.index.dtype == np.int32 and parts.offsets.dtype == np.int64
  assert len(parts.offsets) == 21 and np.diff(parts.offsets).min() >= 1
  assert parts.unused_labels == ()


@pytest.mark.parametrize('name', sorted(set(OPTIONS) - {'natural', 'column'}))
def test_is_a_function_of_the_seed(name):
  first, again, other = (partition(name, LABELS, 20, seed=s, **OPTIONS[name]) for s in (3, 3, 4))
  assert np.array_equal(first.index, again.index)
  assert np.array_equal(first.offsets, again.offsets)
  assert not np.array_equal(first.index, other.index)


def test_blocks_are_consecutive_parts_of_one_permutation():
  parts = partition('blocks', np.zeros(600, int), 100, seed=0, examples_per_client=6)
  expected = np.random.default_rng(0).permutation(600).reshape(100, 6)
  assert np.array_equal(parts.index.reshape(100, 6), expected)


def test_blocks_repeat_for_a_population_larger_than_the_data():
  parts = partition('blocks', np.zeros(600, int), 100_000, seed=0, examples_per_client=6)
  order = np.random.default_rng(0).permutation(600)
  assert np.array_equal(parts.index.reshape(-1, 600)[999], order)
  assert np.array_equal(np.bincount(parts.index), np.full(600, 1000))


def test_blocks_smaller_than_the_data_name_the_labels_left_over():
  labels = np.arange(10)
  parts = partition('blocks', labels, 2, seed=0, examples_per_client=3)
  assert set(parts.unused_labels) == set(range(10)) - set(parts.index.tolist())
  assert len(parts.unused_labels) == 4


def niid_bench_dirichlet(labels, num_clients, alpha, seed):
  """A plain loop over the rule of NIID-Bench: per label, full clients get nothing; redraw."""
  rng = np.random.default_rng(seed)
  while True:
    held = [set() for _ in range(num_clients)]
    for label in range(10):
      mine = np.where(labels == label)[0]
      rng.shuffle(mine)
      share = rng.dirichlet([alpha] * num_clients)
      for client in range(num_clients):
        if len(held[client]) >= len(labels) / num_clients:
          share[client] = 0
      ends = (np.cumsum(share / share.sum()) * len(mine)).astype(int)
      ends[-1] = len(mine)
      begin = 0
      for client, end in enumerate(ends):
        held[client] |= set(mine[begin:end].tolist())
        begin = end
    if min(map(len, held)) >= 10:
      return held


@pytest.mark.parametrize(('num_clients', 'alpha'), [(10, 0.5), (10, 0.1), (40, 0.3)])
def test_dirichlet_equals_the_plain_loop(num_clients, alpha):
  parts = partition('dirichlet', LABELS, num_clients, seed=42, alpha=alpha)
  expected = niid_bench_dirichlet(LABELS, num_clients, alpha, 42)
  assert [set(rows(parts, k).tolist()) for k in range(num_clients)] == expected


def test_dirichlet_is_more_skewed_for_a_smaller_alpha():
  def skew(alpha):
    parts = partition('dirichlet', LABELS, 10, seed=0, alpha=alpha)
    shares = [np.bincount(LABELS[rows(parts, k)], minlength=10) for k in range(10)]
    return np.mean([(s / s.sum()).max() for s in shares])

  assert skew(0.1) > skew(1.0) > skew(100.0)
  assert skew(1e4) < 0.15


def test_dirichlet_examples_of_a_client_are_not_sorted_by_label():
  parts = partition('dirichlet', LABELS, 10, seed=0, alpha=1.0)
  y = LABELS[rows(parts, 0)]
  assert (np.diff(y) < 0).sum() > len(y) / 5


@pytest.mark.slow
def test_a_hopeless_dirichlet_ends_with_an_error():
  with pytest.raises(ValueError, match=r'alpha must be larger.*1000 draws.*0.001, 100 clients'):
    partition('dirichlet', LABELS, 100, seed=0, alpha=0.001)


@pytest.mark.parametrize('count', [1, 2, 3, 10])
def test_labels_per_client_gives_each_its_labels_in_equal_parts(count):
  parts = partition('labels_per_client', LABELS, 10, seed=42, labels_per_client=count)
  held = [np.bincount(LABELS[rows(parts, k)], minlength=10) for k in range(10)]
  assert all((h > 0).sum() == count for h in held)
  assert all(held[k][k] > 0 for k in range(10))
  for label in range(10):
    sizes = [h[label] for h in held if h[label]]
    assert max(sizes) - min(sizes) <= 1


def test_labels_per_client_draws_as_the_baseline_does():
  rng = np.random.default_rng(42)
  expected = []
  for client in range(10):
    labels = [client]
    while len(labels) < 3:
      label = rng.choice(10, 1)[0]
      if label not in labels:
        labels.append(label)
    expected.append(set(labels))
  parts = partition('labels_per_client', LABELS, 10, seed=42, labels_per_client=3)
  assert [set(LABELS[rows(parts, k)]) for k in range(10)] == expected


def test_labels_without_a_holder_are_named():
  parts = partition('labels_per_client', LABELS, 4, seed=0, labels_per_client=1)
  assert parts.unused_labels == (4, 5, 6, 7, 8, 9)
  assert len(np.unique(parts.index)) == len(parts.index) == (LABELS < 4).sum()


def test_quantity_skew_varies_sizes_but_not_labels():
  parts = partition('quantity_skew', LABELS, 10, seed=0, alpha=0.5, min_examples=10)
  sizes = np.diff(parts.offsets)
  assert sizes.min() >= 10 and sizes.max() > 2 * 300
  largest = LABELS[rows(parts, int(sizes.argmax()))]
  assert np.bincount(largest, minlength=10).min() > len(largest) / 20


def test_feature_noise_has_variance_sigma_i_over_n():
  parts = partition('feature_noise', LABELS, 20, seed=0, sigma=0.4)
  assert np.allclose(parts.noise**2, 0.4 * np.arange(1, 21) / 20)


def test_natural_keeps_owners_and_may_draw_some_of_them():
  ids = OPTIONS['natural']['client_ids']
  parts = partition('natural', LABELS, None, seed=0, client_ids=ids)
  assert all((ids[rows(parts, k)] == k).all() for k in range(20))
  some = partition('natural', LABELS, 5, seed=0, client_ids=ids)
  assert len(some.clients) == 5 and len(set(some.clients)) == 5
  assert all((ids[rows(some, k)] == some.clients[k]).all() for k in range(5))
  assert len(some.index) == np.isin(ids, some.clients).sum()


def test_natural_skips_clients_without_examples():
  parts = partition('natural', np.zeros(3, int), None, seed=0, client_ids=np.array([4, 0, 4]))
  assert parts.clients.tolist() == [0, 4]
  assert parts.index.tolist() == [1, 0, 2]


def test_a_client_with_a_larger_alpha_holds_more():
  for name in ('dirichlet', 'flower_dirichlet', 'quantity_skew'):
    alone = partition(name, LABELS, 3, seed=1, alpha=5.0)
    same = partition(name, LABELS, 3, seed=1, alpha=[5.0, 5.0, 5.0])
    assert np.array_equal(alone.index, same.index)
    sizes = np.diff(partition(name, LABELS, 3, seed=0, alpha=[1, 1, 50]).offsets)
    # Under 'dirichlet' a client is closed once it holds a third of all.
    assert sizes.argmax() == 2 or (name == 'dirichlet' and sizes[2] > 1000)


def test_inner_mixtures_are_of_the_given_sizes_and_spread_by_alpha():
  def largest(alpha):
    parts = partition('inner_dirichlet', LABELS, 10, seed=0, alpha=alpha, sizes=[60] * 10)
    assert np.diff(parts.offsets).tolist() == [60] * 10
    assert len(np.unique(parts.index)) == 600
    return np.mean([np.bincount(LABELS[rows(parts, k)]).max() / 60 for k in range(10)])

  assert largest(0.05) > 0.6 > 0.25 > largest(1e4)


def test_an_inner_mixture_that_runs_out_draws_from_what_is_left():
  labels = np.repeat([0, 1], 10)
  parts = partition('inner_dirichlet', labels, 2, seed=0, alpha=1e-9)  # one label a client
  assert np.array_equal(np.sort(parts.index), np.arange(20))


def test_log_normal_sizes_have_their_spread():
  counts = np.diff(
    partition('sizes', np.zeros(10**6, int), 999, seed=0, law='log_normal', sigma=0.7).offsets
  )
  assert np.isclose(np.log(counts).std(), 0.7, rtol=0.08)
  assert counts.sum() == 10**6


def test_a_column_names_its_clients_and_may_give_some_of_them():
  sites = np.array(['b', 'a', 'c', 'a'])
  parts = partition('column', np.arange(4), None, seed=0, column=sites)
  assert parts.names == ('a', 'b', 'c') and parts.index.tolist() == [1, 3, 0, 2]
  some = partition('column', np.arange(4), 2, seed=0, column=sites)
  assert [set(sites[rows(some, k)]) for k in range(2)] == [{x} for x in some.names]
  assert len(some.unused_labels) == 4 - len(some.index)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
  st.integers(0, 2**31), st.integers(1, 12), st.sampled_from(['iid', 'dirichlet', 'quantity_skew'])
)
def test_no_example_is_lost_or_repeated(seed, num_clients, name):
  labels = np.random.default_rng(seed).integers(0, 4, 200)
  options = {} if name == 'iid' else {'alpha': 2.0, 'min_examples': 1}
  parts = partition(name, labels, num_clients, seed=seed, **options)
  assert np.array_equal(np.sort(parts.index), np.arange(200))


@pytest.mark.parametrize(
  ('name', 'num_clients', 'options', 'message'),
  [
    ('dirichle', 10, {}, "partition must be one of .*Did you mean 'dirichlet'"),
    ('dirichlet', 10, {'alpa': 1}, "got 'alpa'. Did you mean 'alpha'"),
    ('dirichlet', 10, {}, 'must be given alpha'),
    ('dirichlet', 10, {'alpha': -1.0}, 'alpha must be a finite number > 0, got -1.0'),
    ('dirichlet', 10, {'alpha': float('nan')}, 'alpha must be a finite number > 0, got nan'),
    ('dirichlet', 301, {'alpha': 1.0}, 'num_clients must leave at least 10'),
    ('iid', 0, {}, 'num_clients must be an integer >= 1, got 0'),
    ('iid', None, {}, 'num_clients must be an integer >= 1, got None'),
    ('iid', 3001, {}, 'num_clients must leave at least 1 of the 3000 examples'),
    ('labels_per_client', 10, {'labels_per_client': 11}, 'labels_per_client must be .*<= 10'),
    ('labels_per_client', 5000, {'labels_per_client': 1}, 'at least one example, got none'),
    ('blocks', 10, {'examples_per_client': 3001}, 'examples_per_client must be'),
    ('feature_noise', 10, {'sigma': -0.1}, 'sigma must be a finite number >= 0'),
    ('dirichlet', 3, {'alpha': [1.0, 2.0]}, 'alpha must be one number, or 3, one a client, got 2'),
    ('dirichlet', 2, {'alpha': [1.0, 0.0]}, r'alpha\[1\] must be a finite number > 0, got 0.0'),
    ('flower_dirichlet', 9, {'alpha': 1.0, 'self_balancing': 1}, 'self_balancing must be true'),
    ('inner_dirichlet', 2, {'alpha': [1.0]}, 'alpha must be one number, or 10, one a label, got 1'),
    ('inner_dirichlet', 2, {'alpha': 1.0, 'sizes': [5]}, 'sizes must be 2 integers, one a client'),
    ('inner_dirichlet', 2, {'alpha': 1.0, 'sizes': [5, 0]}, r'sizes\[1\] must be an integer >= 1'),
    ('inner_dirichlet', 2, {'alpha': 1.0, 'sizes': [5, 2996]}, 'sizes must be 3000 .* got 3001'),
    ('sizes', 10, {'law': 'cubic'}, "law must be one of 'linear'"),
    ('sizes', 10, {'law': 'linear', 'sigma': 1.0}, "sigma must be given for 'log_normal' alone"),
    ('sizes', 10, {'law': 'log_normal'}, "sigma must be given for 'log_normal' alone, got None"),
    ('sizes', 900, {'law': 'exponential'}, "under 'exponential', got 900: client 0 has 0"),
    ('column', None, {'column': np.zeros(5)}, r'column must be 3000 values, got shape \(5,\)'),
    ('column', None, {'column': np.full(3000, np.nan)}, 'got NaN in it'),
    ('column', None, {'column': np.array([1, 'a'] * 1500, object)}, 'values of one kind'),
    ('natural', None, {'client_ids': np.zeros(5, int)}, 'client_ids must be 3000 integers'),
    ('natural', 3, {'client_ids': np.zeros(3000, int)}, 'num_clients must be .*<= 1, got 3'),
  ],
)
def test_bad_arguments_are_refused(name, num_clients, options, message):
  with pytest.raises(ValueError, match=message):
    partition(name, LABELS, num_clients, seed=0, **options)


def test_sequences_cannot_be_partitioned_by_label():
  with pytest.raises(ValueError, match='labels must be one integer an example'):
    partition('dirichlet', np.zeros((100, 8), int), 5, seed=0, alpha=1.0)
  assert len(partition('iid', np.zeros((100, 8), int), 5, seed=0).index) == 100


def test_lists_of_rows_make_a_partition():
  parts = Partition.of([np.array([3, 1]), np.array([2])])
  assert parts.index.tolist() == [3, 1, 2] and parts.offsets.tolist() == [0, 2, 3]
  with pytest.raises(ValueError, match='got none for client 1'):
    Partition.of([np.array([3, 1]), np.array([], int)])
  with pytest.raises(ValueError, match='rows of a partition must be integers'):
    Partition.of([np.array([0.5])])
