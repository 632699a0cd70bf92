"""Data sets by name, what is listed, and names and options that are wrong."""

import numpy as np
import pytest

from fedjax_mem.data import FederatedData, describe, flat, load, names
from fedjax_mem.data.digits import load_digits


def put(root, name, home):
  x, y = np.zeros((6, 2), np.uint8), np.array([0, 1, 2, 0, 1, 2], np.int32)
  block = flat.Block(x, y)
  return flat.write(root / home, flat.Facts(name, 3, (2,)), {'train': [block], 'test': [block]})


def test_digits_by_name():
  data = load('digits', partition='dirichlet', num_clients=20, seed=1, alpha=0.5)
  assert isinstance(data, FederatedData) and data.num_clients == 20
  again = load('digits', partition='dirichlet', num_clients=20, seed=1, alpha=0.5)
  assert np.array_equal(data.index, again.index) and data.preprocess == again.preprocess


def test_synthetic_takes_its_own_options_and_clients():
  data = load('synthetic', num_clients=7, alpha=0.5, beta=0.5, seed=2)
  assert data.num_clients == 7 and data.name == 'synthetic(0.5, 0.5)'
  assert load('synthetic').num_clients == 30
  assert load('synthetic', iid=True, num_clients=3).name == 'synthetic_iid'


def test_a_prepared_set_by_name(tmp_path):
  put(tmp_path, 'cifar', 'cifar/3.0.0')
  data = load('cifar', num_clients=2, data_dir=tmp_path)
  assert data.num_clients == 2 and data.counts.tolist() == [3, 3]


def make_table():
  return load_digits()


def make_data(num_clients, seed):
  return load('digits', num_clients=num_clients, seed=seed)


def test_research_code_by_name(monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, 'my_research', sys.modules[__name__])
  assert load('my_research:make_table', num_clients=5).num_clients == 5
  assert load('my_research:make_data', num_clients=6).num_clients == 6
  for bad in ('my_research:nothing', 'no_such_module:f'):
    with pytest.raises(ValueError, match=r'data\.name must name a'):
      load(bad, num_clients=5)


@pytest.mark.parametrize(
  ('name', 'options', 'message'),
  [
    ('digit', {}, "data 'digit' must be prepared .* Did you mean 'digits'"),
    ('fed_emnist', {}, "data 'fed_emnist' must be prepared .*fedjax-mem data prepare fed_emnist"),
    ('digits', {}, 'num_clients must be an integer >= 1, got None'),
    ('digits', {'num_clients': 5, 'partition': 'natural'}, "another than 'natural' for 'digits'"),
    ('digits', {'num_clients': 5, 'partition': 'dirichlet', 'alpah': 1}, "Did you mean 'alpha'"),
    ('synthetic', {'alpa': 1.0}, "options of data 'synthetic' must be .*Did you mean 'alpha'"),
    ('synthetic', {'seed': -1}, 'seed must be an integer >= 0, got -1'),
  ],
)
def test_mistakes_are_named(name, options, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    load(name, data_dir=tmp_path, **options)


def test_the_list_says_what_is_there_and_what_is_missing(tmp_path):
  folder = put(tmp_path, 'fed_emnist', 'fed_emnist/all/1.0.0')
  put(tmp_path, 'mine', 'mine/small/1.0.0')
  entries = {entry.name: entry for entry in describe(tmp_path)}
  assert set(entries) == {*names(), 'mine/small'}
  assert entries['digits'].available and entries['digits'].where == 'built in'
  assert entries['fed_emnist'].available and entries['fed_emnist'].where == str(folder.parent)
  assert entries['mine/small'].size == '6 + 6 examples'
  missing = entries['fed_shakespeare']
  assert not missing.available and 'shakespeare.sqlite.lzma' in missing.remedy
  assert f'fedjax-mem data prepare fed_shakespeare --data-dir {tmp_path}' in missing.remedy
  (folder / 'train_x.npy').unlink()
  damaged = {entry.name: entry for entry in describe(tmp_path)}['fed_emnist']
  assert not damaged.available and damaged.remedy.startswith('fedjax-mem data prepare fed_emnist')
