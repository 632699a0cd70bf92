"""The server's validation split: neither training nor test, and a function of the seed."""

import numpy as np
import pytest

from fedjax_mem.data import load
from fedjax_mem.data.digits import load_digits
from fedjax_mem.data.table import Table, distribute, hold_out

PARTITIONS = {
  'iid': {},
  'dirichlet': {'alpha': 0.5, 'min_examples': 2},
  'labels_per_client': {'labels_per_client': 3},
  'blocks': {},
  'quantity_skew': {'alpha': 1.0},
}


def table(clients=None):
  """Returns examples that say which they are."""
  x = np.arange(100, dtype=np.float32)[:, None]
  test = {'x': x[:5] + 1000, 'y': np.zeros(5, np.int32)}
  y = np.arange(100, dtype=np.int32) % 4
  own = None if clients is None else np.arange(100, dtype=np.int32) % clients
  return Table('numbers', {'x': x, 'y': y}, test, 4, (1,), lambda b: b, own)


@pytest.mark.parametrize('name', PARTITIONS)
def test_no_client_holds_what_is_held_out_and_all_the_rest_is_there(name):
  data = load('digits', partition=name, num_clients=10, seed=3, validation=0.2, **PARTITIONS[name])
  plain = load_digits()
  held = hold_out(plain, 0.2, 3).held
  assert len(held) == 288 == len(data.validation['y']) and len(set(held.tolist())) == 288
  assert not set(held.tolist()) & set(data.index.tolist())
  assert set(held.tolist()) | set(data.index.tolist()) == set(range(1438))
  for part in ('x', 'y'):
    np.testing.assert_array_equal(data.validation[part], plain.arrays[part][held])
    np.testing.assert_array_equal(data.test[part], plain.test[part])


def test_it_is_a_function_of_the_seed_and_not_of_the_partition():
  one, same = (hold_out(table(), 0.3, 5).held for _ in range(2))
  np.testing.assert_array_equal(one, same)
  assert (one != hold_out(table(), 0.3, 6).held).any()
  first = load('digits', num_clients=10, seed=5, validation=0.1)
  second = load('digits', partition='dirichlet', alpha=1.0, num_clients=4, seed=5, validation=0.1)
  np.testing.assert_array_equal(first.validation['x'], second.validation['x'])


def test_without_one_nothing_changes():
  one, two = load('digits', num_clients=10), load('digits', num_clients=10, validation=0.0)
  np.testing.assert_array_equal(one.index, two.index)
  assert one.validation is None and two.validation is None


def test_clients_of_their_own_keep_the_rest_of_theirs():
  data = distribute(hold_out(table(5), 0.25, 1), None, None, 1)
  assert data.num_clients == 5
  seen = [int(v) for v in data.validation['x'][:, 0]]
  for client in range(5):
    rows = data.rows(client).tolist()
    assert all(r % 5 == client for r in rows)
    seen += rows
  assert sorted(seen) == list(range(100))


def test_a_client_without_an_example_left_is_not_there():
  own = table()._replace(client_ids=np.r_[0, np.full(99, 1)].astype(np.int32), clients=('a', 'b'))
  seed = next(s for s in range(50) if 0 in hold_out(own, 0.5, s).held)
  data = distribute(hold_out(own, 0.5, seed), 'natural', None, seed)
  assert data.clients == ('b',)


def test_noise_on_the_clients_is_not_on_the_servers_split():
  data = distribute(hold_out(table(), 0.2, 1), 'feature_noise', 4, 1, sigma=9.0)
  held = hold_out(table(), 0.2, 1).held
  np.testing.assert_array_equal(data.validation['x'][:, 0], held.astype(np.float32))
  assert (data.arrays['x'][data.index, 0] != data.index).mean() > 0.5


def own_population(num_clients, seed):
  return load('digits', num_clients=num_clients, seed=seed)


def test_bad_shares(monkeypatch):
  import sys

  with pytest.raises(ValueError, match=r'validation must be a number in \[0, 1\], got 1.5'):
    hold_out(table(), 1.5, 0)
  with pytest.raises(ValueError, match='validation must leave some of 100 examples to train on'):
    hold_out(table(), 1.0, 0)
  monkeypatch.setitem(sys.modules, 'my_split', sys.modules[__name__])
  with pytest.raises(ValueError, match="validation must be 0 for 'digits'"):
    load('my_split:own_population', num_clients=5, validation=0.1)
