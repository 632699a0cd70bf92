"""FederatedData: what it holds on the device, and what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest

from fedjax_mem.core import Examples
from fedjax_mem.data.partition import partition
from fedjax_mem.data.preprocess import Inputs, Tokens
from fedjax_mem.data.source import FederatedData, from_arrays, placed

X = np.arange(8 * 6, dtype=np.uint8).reshape(8, 2, 3)
Y = np.array([0, 1, 2, 0, 1, 2, 0, 1])
LISTS = [[0, 3], [5], [1, 2, 4]]


def make(**options):
  return from_arrays(X, Y, LISTS, **options)


@pytest.mark.slow
def test_population_holds_every_client_s_examples():
  data = make(test=(X[:3], Y[:3]))
  population = data.population()
  assert data.num_clients == 3 and data.counts.tolist() == [2, 1, 3]
  assert population.arrays['x'].dtype == np.uint8
  assert population.start.dtype == population.count.dtype == population.index.dtype == np.int32
  for client, expected in enumerate(LISTS):
    start, count = population.start[client], population.count[client]
    examples = Examples(population.arrays, population.index, start, count, count, 3)
    batch = examples.take(np.arange(int(count)))
    assert np.array_equal(batch['x'], X[expected])
    assert np.array_equal(batch['y'], Y[expected])


@pytest.mark.parametrize('offset', [0, 16, 32, 8])
def test_arrays_on_the_device_are_not_the_caller_s(offset):
  raw = np.zeros(4096 + 128, np.uint8)
  begin = -raw.ctypes.data % 64 + offset
  x = raw[begin : begin + 4096].view(np.float32)
  there = placed(x)
  x[:] = 1
  assert float(there.sum()) == 0


def test_defaults_suit_images():
  data = make()
  batch = jax.jit(data.preprocess)(data.arrays)
  assert data.input_shape == (2, 3, 1) and batch['x'].shape == (8, 2, 3, 1)
  assert np.allclose(batch['x'][..., 0], X / 255, rtol=1e-6)
  assert data.num_classes == 3 and len(data.test['y']) == 0


def test_floats_are_left_as_they_are():
  data = from_arrays(np.ones((8, 5)), Y, LISTS)
  assert data.input_shape == (5,) and data.preprocess == Inputs((5,))


def test_tokens_are_cast_after_the_gather():
  x = np.ones((8, 4), np.uint8)
  data = from_arrays(x, x, LISTS, num_classes=2, preprocess=Tokens())
  batch = data.preprocess(data.arrays)
  assert batch['x'].dtype == batch['y'].dtype == np.int32 and data.input_shape == (4,)


def test_label_counts_are_clients_by_labels():
  assert make().label_counts().tolist() == [[2, 0, 0], [0, 0, 1], [0, 2, 1]]


def test_nbytes_is_what_the_device_holds():
  data = make()
  assert data.nbytes == sum(x.nbytes for x in jax.tree.leaves(data.population()))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'num_classes': 2}, r'labels of arrays must be in \[0, num_classes = 2\), got 0 to 2'),
    ({'clients': ('a', 'b')}, 'clients must be 3 names'),
    ({'test': (X[:3], Y[:2])}, 'test must be of one length'),
    ({'test': (X[:1], [7]), 'num_classes': 3}, 'labels of test must be in'),
  ],
)
def test_from_arrays_refuses(change, message):
  with pytest.raises(ValueError, match=message):
    make(**change)


def test_from_arrays_refuses_bad_arrays():
  with pytest.raises(ValueError, match='arrays must be of one length'):
    from_arrays(X[:4], Y, LISTS)
  with pytest.raises(ValueError, match=r'y must be integers or strings .* got float64'):
    from_arrays(X, Y * 1.0, LISTS)
  with pytest.raises(ValueError, match='y must be in'):
    from_arrays(X, Y.astype(np.int64) << 40, LISTS)
  with pytest.raises(ValueError, match='x must be finite, got NaN'):
    from_arrays(np.full((8, 2), np.nan), Y, LISTS)
  with pytest.raises(ValueError, match='got none for client 1'):
    from_arrays(X, Y, [[0], [], [1]])
  with pytest.raises(ValueError, match=r'index must be rows in \[0, 8\), got 0 to 8'):
    from_arrays(X, Y, [[0, 8]])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'offsets': np.array([0, 2, 2, 6])}, 'at least one example, got 0 for client 1'),
    ({'offsets': np.array([0, 4, 2, 6])}, 'at least one example, got -2 for client 1'),
    ({'offsets': np.array([0, 2, 3, 5])}, 'offsets must run from 0 to the length of index = 6'),
    ({'offsets': np.array([1, 2, 3, 6])}, 'offsets must run from 0'),
    ({'offsets': np.array([0, 2, 3, 6], np.int32)}, 'offsets must be int64'),
    ({'index': np.arange(6)}, 'index must be int32'),
    ({'index': np.array([0, 3, 5, 1, 2, -1], np.int32)}, 'index must be rows in .*got -1 to 5'),
    ({'arrays': {'x': X, 'y': Y}}, r"arrays\['y'\] must be int32, got int64"),
    ({'arrays': {'x': X}}, "arrays must hold 'x' and 'y'"),
  ],
)
def test_construction_refuses_what_is_not_consistent(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(make(), **change)
  assert isinstance(make(), FederatedData)


def test_a_partition_of_sequences_is_shown_by_their_numbers():
  from reference import made

  from fedjax_mem.data.table import distribute

  data = distribute(made.shakespeare())
  counts, labels = data.shown()
  assert labels == ['sequences'] and counts.tolist() == [[made.EXAMPLES]] * made.CLIENTS
  with pytest.raises(ValueError, match='one label an example'):
    data.label_counts()
  counts, labels = distribute(made.emnist()).shown()
  assert labels is None and counts.shape == (made.CLIENTS, 62)
  assert counts.sum() == made.CLIENTS * made.EXAMPLES


def test_a_row_is_in_the_lists_of_a_user_once_unless_it_is_shared():
  twice = [[0, 3], [5, 3], [1]]
  with pytest.raises(
    ValueError, match='got row 3 in the lists of client 0 and of client 1: shared'
  ):
    from_arrays(X, Y, twice)
  with pytest.raises(ValueError, match="got row 3 in the lists of client 'a' and of client 'b'"):
    from_arrays(X, Y, twice, clients=('a', 'b', 'c'))
  with pytest.raises(ValueError, match='got row 5 in the lists of client 1 and of client 1'):
    from_arrays(X, Y, [[0], [5, 5]])
  assert from_arrays(X, Y, twice, shared=True).counts.tolist() == [2, 2, 1]
  parts = partition('blocks', Y, 3, seed=0, examples_per_client=8)  # it may repeat
  assert from_arrays(X, Y, parts).counts.tolist() == [8, 8, 8]


def test_rows_that_are_equal_are_counted():
  x = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [3.0, 4.0]], np.float32)
  lists = [[0, 1], [2, 3]]
  assert from_arrays(x, [0, 0, 1, 1], lists).equal_rows() == 1  # a row is x and y
  assert from_arrays(x, [0, 0, 0, 0], lists).equal_rows() == 2
  assert make().equal_rows() == 0
  mapped = dataclasses.replace(make(), arrays={'x': X.view(np.memmap), 'y': Y.astype(np.int32)})
  assert mapped.equal_rows() is None


def test_labels_weights_and_tasks_of_a_user_are_kept():
  data = make(weights=[1, 2, 3.5])
  assert data.weights.dtype == np.float32 and data.weights.tolist() == [1, 2, 3.5]
  names = np.array(['b', 'a', 'c'])[Y]
  data = from_arrays(X, names, LISTS, test=(X[:2], names[:2]))
  assert data.labels == ('a', 'b', 'c') and data.test['y'].tolist() == [1, 0]
  assert data.label_counts().tolist() == [[0, 2, 0], [0, 0, 1], [2, 0, 1]]
  numbers = from_arrays(X, Y * 0.5, LISTS, task='regression')
  assert numbers.shown()[1] == ['examples'] and numbers.unused_labels == ()
  with pytest.raises(ValueError, match='y must be one label an example'):
    numbers.label_counts()
  for weights, message in (([1, 2], 'weights must be 3'), ([1, 0, 2], 'got .*0.* for client 1')):
    with pytest.raises(ValueError, match=message):
      make(weights=weights)
  with pytest.raises(ValueError, match='labels must be 3 names, got 1'):
    dataclasses.replace(make(), labels=('a',))


def test_the_digest_is_of_examples_lists_test_set_and_names():
  first = make(test=(X[:2], Y[:2]))
  assert first.digest() == make(test=(X[:2], Y[:2])).digest()
  others = (
    make(), dataclasses.replace(first, labels=('a', 'b', 'c')),
    dataclasses.replace(first, index=first.index[::-1].copy()),
    dataclasses.replace(first, arrays={'x': X + 1, 'y': first.arrays['y']}),
  )  # fmt: skip
  assert len({first.digest(), *(x.digest() for x in others)}) == 5
