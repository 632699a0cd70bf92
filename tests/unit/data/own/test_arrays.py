"""Arrays of each client, of different sizes."""

import numpy as np
import pytest

import fedjax_mem as fm
from fedjax_mem.data import from_clients, from_npz
from fedjax_mem.data.own._shared import Rows, split

SIZES = (7, 1, 12)


def clients(kind=str):
  rng = np.random.default_rng(0)
  named = {}
  for i, n in enumerate(SIZES):
    y = rng.integers(0, 3, n)
    y = np.array(['a', 'b', 'c'])[y] if kind is str else y.astype(kind)
    named[f'c{i}'] = rng.normal(size=(n, 2)), y
  return named


def test_clients_keep_what_is_theirs_whatever_its_size(tmp_path):
  given = clients()
  data = fm.data.distribute(from_clients(given, test_share=0, weights=[1, 2, 3]))
  assert data.counts.tolist() == list(SIZES) and data.clients == tuple(given)
  assert data.weights.tolist() == [1, 2, 3]
  for i, (x, y) in enumerate(given.values()):
    assert np.array_equal(data.arrays['x'][data.rows(i)], x.astype(np.float32))
    assert [data.labels[k] for k in data.arrays['y'][data.rows(i)]] == y.tolist()
  for who, (x, y) in given.items():
    np.savez(tmp_path / who, x=x, y=y)
  same = fm.data.load('npz', path=str(tmp_path), test_share=0)
  assert np.array_equal(same.arrays['x'], data.arrays['x']) and same.labels == data.labels
  assert from_clients(list(given.values())).clients == ('0', '1', '2')
  assert fm.data.distribute(from_clients(clients(float), task='regression')).num_classes == 1


def test_a_share_is_drawn_of_each_client_and_leaves_one_of_each_class():
  rng = np.random.default_rng(1)
  owner = np.repeat(np.arange(4), [1, 2, 10, 101])
  y = np.where(np.arange(len(owner)) == 50, 'rare', 'often')
  rows = Rows(np.arange(len(owner))[:, None], y, owner)
  train, test = split(rows, 0.3, 5)
  assert sorted([*train.x[:, 0], *test.x[:, 0]]) == list(range(len(owner)))
  assert np.bincount(test.clients, minlength=4).tolist() == [0, 1, 3, 30]
  again, other = split(rows, 0.3, 5)[1], split(rows, 0.3, 6)[1]
  assert np.array_equal(test.x, again.x) and not np.array_equal(test.x, other.x)
  # Uniform: each row of the largest client is drawn about as often.
  often = np.zeros(len(owner))
  for seed in rng.integers(0, 2**31, 300):
    drawn = split(rows, 0.3, int(seed))[1].x[:, 0]
    assert not {0, 50} & set(drawn)  # the only one of a client, and of a class
    often[drawn] += 1
  rest = np.setdiff1d(np.flatnonzero(owner == 3), [50])
  assert np.abs(often[rest] - 300 * 30 / 100).max() < 5 * np.sqrt(300 * 0.3 * 0.7)


X = np.ones((3, 2))


@pytest.mark.parametrize(
  ('given', 'options', 'message'),
  [
    ({}, {}, 'clients must be at least one, got none'),
    ({'a': (X, [0, 1, 0]), 'b': (X[:0], [])}, {}, "client 'b' must hold at least one example"),
    ({'a': (X, [0, 1])}, {}, "client 'a' must hold as many labels as inputs"),
    ({'a': (X, [0, 1, 0]), 'b': (X[:, :1], [0, 1, 0])}, {}, "client 'b' must hold examples like"),
    ({'a': (X, [0, 1, 0]), 'b': (X, ['u', 'v', 'w'])}, {}, "client 'b' must hold examples like"),
    ({'a': (X * np.nan, [0, 1, 0])}, {}, "x of client 'a' must have a value .* in row 0"),
    ({'a': (X, [0.0, np.nan, 1])}, {'task': 'regression'}, "y of client 'a' must have .* row 1"),
    ({'a': (X, [0, 1, 0])}, {'weights': [1, 2]}, 'weights must be 1, one a client, got 2'),
    ({'a': X}, {}, "client 'a' must be a pair of inputs and labels"),
    ({'a': (X, [0, 1, 0])}, {'test_share': 1.0}, 'test_share must be a number in'),
  ],
)
def test_what_is_wrong_is_named_by_the_client(given, options, message):
  with pytest.raises(ValueError, match=message):
    from_clients(given, **options)


def test_files_that_are_no_arrays_are_named(tmp_path):
  with pytest.raises(ValueError, match=r'must hold .npz files, one a client, got none'):
    from_npz(tmp_path)
  (tmp_path / 'a.npz').write_bytes(b'no archive')
  with pytest.raises(ValueError, match=r'a.npz must be an .npz file'):
    from_npz(tmp_path)
  np.savez(tmp_path / 'a.npz', x=X)
  with pytest.raises(ValueError, match=r"a.npz must be an .npz file with 'x' and 'y'"):
    from_npz(tmp_path)
