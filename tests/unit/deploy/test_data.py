"""A client's own examples: read, checked against what a job expects, and what is built of it."""

import dataclasses
import json
import sys
import types

import jax
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from fedjax_mem import data as datasets
from fedjax_mem.config import build
from fedjax_mem.config.load import config_from_dict
from fedjax_mem.core import validate
from fedjax_mem.data import Table
from fedjax_mem.data.source import from_arrays
from fedjax_mem.deploy import data as own_data
from fedjax_mem.deploy.data import Expected, own, part_of, parts_of

DIGITS = datasets.load('digits', num_clients=6, partition='dirichlet', alpha=1.0)
EXPECTED = Expected.of(DIGITS)
SMALL = dataclasses.replace(
  EXPECTED,
  x_shape=(2, 2),
  input_shape=(2, 2, 1),
  preprocess=dataclasses.replace(DIGITS.preprocess, shape=(2, 2, 1)),
  num_classes=3,
)
FLOATS = dataclasses.replace(
  SMALL, x_dtype='float32', preprocess=dataclasses.replace(SMALL.preprocess, divisor=1.0)
)
X, Y = np.arange(20, dtype=np.uint8).reshape(5, 2, 2), np.array([0, 1, 2, 1, 0])
NAMES = ['a', 'b', 'c', 'd']


def job(**changes):
  raw = {
    'rounds': 2,
    'data': {'name': 'digits', 'num_clients': 6, 'partition': 'dirichlet', 'alpha': 1.0},
    'model': {'name': 'logistic'},
    'selection': {'cohort_size': 3},
  }
  return config_from_dict(raw | changes)


def written(folder, kind, x, y, label='y'):
  """Writes examples in one of the ways that a client may have them; returns the path."""
  path = folder / f'own{kind}'
  if kind == '.npz':
    np.savez(path, x=x, y=y)
  elif not kind:
    path.mkdir()
    np.save(path / 'x.npy', x)
    np.save(path / 'y.npy', y)
  else:
    flat = np.asarray(x).reshape(len(x), -1)
    columns = {'a': flat[:, 0], label: y} | dict(zip(NAMES[1:], flat.T[1:], strict=True))
    table = pyarrow.table(columns)
    if kind == '.parquet':
      parquet.write_table(table, path)
    else:
      rows = zip(*columns.values(), strict=True)
      lines = [','.join(columns), *(','.join(map(str, row)) for row in rows)]
      path.write_text('\n'.join(lines))
  return path


@pytest.mark.parametrize('kind', ['.npz', '', '.csv', '.parquet'])
@pytest.mark.parametrize('expected', [SMALL, FLOATS], ids=['uint8', 'float32'])
def test_own_examples_are_read_as_they_are_stored(tmp_path, kind, expected):
  x = X if expected is SMALL else X.astype(np.float64)
  found = own(written(tmp_path, kind, x, Y), expected)
  assert found['x'].dtype == expected.x_dtype and found['y'].dtype == np.int32
  np.testing.assert_array_equal(found['x'], X)
  np.testing.assert_array_equal(found['y'], Y)


def test_a_table_may_call_its_labels_label(tmp_path):
  np.testing.assert_array_equal(own(written(tmp_path, '.csv', X, Y, 'label'), SMALL)['y'], Y)


def test_a_table_of_whole_numbers_is_one_of_floats(tmp_path):
  np.testing.assert_array_equal(own(written(tmp_path, '.csv', X, Y), FLOATS)['x'], X)


NONE = np.zeros((0, 2, 2), np.uint8)
BAD = {
  'another size': (np.zeros((5, 28, 28), np.uint8), Y, SMALL, r'x \[5, 28, 28\] uint8 and y'),
  'flat': (X.reshape(5, 4), Y, SMALL, r'x \[5, 4\] uint8'),
  'a number': (np.uint8(1), Y, SMALL, r'x \[\] uint8'),
  'labels of two axes': (X, Y[:, None], SMALL, r'y \[5, 1\] int64'),
  'fewer labels': (X, Y[:4], SMALL, r'y \[4\] int64: at least one'),
  'no examples': (NONE, Y[:0], SMALL, r'x \[0, 2, 2\]'),
  'a label too high': (X, Y + 1, SMALL, r'in 1 … 3'),
  'a label below 0': (X, Y - 1, SMALL, r'in -1 … 1'),
  'labels of floats': (X, Y + 0.5, SMALL, r'float64 in 0.5 … 2.5'),
  'labels that are NaN': (X, np.full(5, np.nan), SMALL, r'in nan … nan'),
  'floats for integers': (X / 16, Y, SMALL, r'float64.*, x in 0.0 … 1.18'),
  'integers out of range': (X.astype(int) + 250, Y, SMALL, r'int64.*, x in 250 … 269'),
  'below range': (X.astype(int) - 1, Y, SMALL, r'x in -1 … 18'),
  'integers for floats': (X, Y, FLOATS, r'x \[5, 2, 2\] uint8'),
  'NaN': (np.where(X == 7, np.nan, X), Y, FLOATS, r'float64.* with NaN or infinity'),
  'beyond float32': (np.full(X.shape, 1e300), Y, FLOATS, r'with NaN or infinity'),
}


@pytest.mark.parametrize('x, y, expected, words', BAD.values(), ids=BAD)
def test_examples_that_do_not_fit_are_refused_with_both_sides(tmp_path, x, y, expected, words):
  path = written(tmp_path, '.npz', x, y)
  stored = expected.x_dtype
  with pytest.raises(
    ValueError,
    match=rf'own\.npz must be x \[n, 2, 2\] {stored} and y \[n\] integers in 0 … 2, got .*{words}',
  ) as error:
    own(path, expected)
  assert '\n' not in str(error.value)


def test_files_that_hold_no_examples_are_refused(tmp_path):
  (tmp_path / 'text.csv').write_text('a,b,c,d\n1,2,3,4\n')
  (tmp_path / 'cells.csv').write_text('a,b,c,d,y\n1,2,,4,0\n')
  (tmp_path / 'words.csv').write_text('a,b,c,d,y\n1,2,x,4,0\n')
  (tmp_path / 'empty.csv').touch()
  (tmp_path / 'broken.npz').write_bytes(b'PK\x03\x04 no archive')
  (tmp_path / 'broken.parquet').write_bytes(b'no table')
  (tmp_path / 'half').mkdir()
  np.save(tmp_path / 'half' / 'x.npy', X)
  np.savez(tmp_path / 'one.npz', x=X)
  (tmp_path / 'x.txt').write_text('1')
  for name, words in {
    'text.csv': "no column y or label among ['a', 'b', 'c', 'd']",
    'cells.csv': "column 'c' has an empty cell",
    'words.csv': "column 'c' has an empty cell, or what is no number",
    'empty.csv': 'Empty CSV file',
    'broken.npz': '',
    'broken.parquet': '',
    'half': 'y.npy',
    'one.npz': 'y is not a file',
    'x.txt': 'another kind of file, or nothing',
    'nowhere.npz': 'No such file',
    'nowhere': 'another kind of file, or nothing',
  }.items():
    with pytest.raises(ValueError, match=r'^--data must be an \.npz file') as error:
      own(tmp_path / name, SMALL)
    assert words in str(error.value) and name in str(error.value), name
    assert '\n' not in str(error.value)


class Loud:
  """Says when it is unpickled."""

  def __reduce__(self):
    return HEARD.append, ('called',)


HEARD: list[str] = []


@pytest.mark.parametrize('kind', ['.npz', ''])
def test_arrays_of_objects_are_not_unpickled(tmp_path, kind):
  path = written(tmp_path, kind, np.array([Loud()] * 5, object), Y)
  with pytest.raises(ValueError, match='--data must be'):
    own(path, SMALL)
  assert HEARD == []


def test_the_description_crosses_as_json():
  assert EXPECTED.x_shape == (8, 8) and EXPECTED.input_shape == (8, 8, 1)
  assert EXPECTED.shape == (6, int(DIGITS.counts.max()), False)
  tokens = from_arrays(
    np.zeros((4, 5), np.int32), np.zeros((4, 5), int), [[0, 1], [2, 3]],
    preprocess=own_data.Tokens(), num_classes=7,
  )  # fmt: skip
  for expected in (
    EXPECTED,
    FLOATS,
    Expected.of(tokens),
    dataclasses.replace(SMALL, preprocess=None),
  ):
    assert Expected.from_json(expected.to_json()) == expected
  assert Expected.of(tokens).equal and Expected.of(tokens).y_shape == (5,)


@pytest.mark.parametrize(
  'changes',
  [
    {'x_shape': [2, 0]}, {'x_shape': [2.5, 2]}, {'x_shape': [2**20, 2**20]}, {'x_shape': 4},
    {'x_shape': [1] * 9}, {'x_dtype': 'object'}, {'x_dtype': 'U8'}, {'x_dtype': ['uint8']},
    {'num_classes': 0}, {'num_classes': True}, {'num_clients': 2**40}, {'most': 'x'}, {'equal': 1},
    {'input_shape': [3, 3, 1]}, {'kind': 'os:system'}, {'kind': 'Tokens'}, {'more': 1},
    {'preprocess': {'shape': [2, 2, 1], 'divisor': 0}}, {'preprocess': {'path': 'x'}},
    {'preprocess': [1]},
  ],
)  # fmt: skip
def test_a_description_of_nothing_is_refused(changes):
  text = json.dumps({**json.loads(SMALL.to_json()), **changes})
  with pytest.raises(ValueError, match=r'^the description of the data must be') as error:
    Expected.from_json(text)
  assert '\n' not in str(error.value)
  for text in ('', '[]', 'null', '{}', b'\xff'):
    with pytest.raises(ValueError, match=r'^the description of the data must be'):
      Expected.from_json(text)


def test_a_clients_part_of_the_configured_data():
  for client in range(6):
    part = part_of(DIGITS, client, EXPECTED)
    np.testing.assert_array_equal(part['x'], DIGITS.arrays['x'][DIGITS.rows(client)])
    np.testing.assert_array_equal(part['y'], DIGITS.arrays['y'][DIGITS.rows(client)])
    assert own_data.fits(part, EXPECTED, 'here')['x'].dtype == np.uint8
  with pytest.raises(ValueError, match=r'^client must be an integer >= 0 and <= 5, got 6'):
    part_of(DIGITS, 6, EXPECTED)
  there = dataclasses.replace(EXPECTED, most=EXPECTED.most + 1)
  with pytest.raises(ValueError, match=rf'got most {there.most} there and {EXPECTED.most} here'):
    part_of(DIGITS, 0, there)


STACKS = {
  'plain': {},
  'contribution': {
    'selection': {'name': 'contribution', 'cohort_size': 3},
    'data': {'name': 'digits', 'num_clients': 6, 'validation': 0.1},
  },
  'importance': {'selection': {'name': 'importance', 'cohort_size': 3, 'options': {'by': 'loss'}}},
  'clock': {'selection': {'cohort_size': 3, 'clock': {'deadline': 10, 'median_seconds': 5}}},
  'codec': {'stages': [{'use': 'error_feedback', 'options': {'codec': 'sign'}}]},
}


@pytest.mark.parametrize('changes', STACKS.values(), ids=STACKS)
def test_a_client_builds_its_sides_without_the_data(changes, monkeypatch):
  config = job(**changes)
  there = build.build(config)
  monkeypatch.setattr(build, 'load_data', None)
  here = parts_of(config, Expected.from_json(Expected.of(there.data).to_json()))
  assert here.preprocess == there.data.preprocess
  assert [(x.name, set(x.sides)) for x in here.layers] == [
    (x.name, set(x.sides)) for x in there.layers
  ]
  for ours, theirs in zip(here.layers, there.layers, strict=True):
    for side in {'client', 'server'} & set(ours.sides):
      kinds = [[type(x) for x in layer.sides[side].facts] for layer in (ours, theirs)]
      assert kinds[0] == kinds[1]
  same = jax.tree.map(
    np.array_equal, here.model.init(jax.random.key(0)), there.model.init(jax.random.key(0))
  )
  assert all(jax.tree.leaves(same))


def foreign():
  """Returns a data set with a preprocessing of its own."""
  return Table(
    'foreign', {'x': X, 'y': Y.astype(np.int32)}, {'x': X, 'y': Y.astype(np.int32)}, 3, (2, 2),
    lambda batch: {**batch, 'x': batch['x'] + 1.0},
  )  # fmt: skip


def test_a_preprocessing_of_the_data_sets_own_is_loaded_where_it_is_allowed(monkeypatch, tmp_path):
  module = types.ModuleType('foreign_data')
  module.load = foreign
  foreign.__module__ = 'foreign_data'
  monkeypatch.setitem(sys.modules, 'foreign_data', module)
  config = job(data={'name': 'foreign_data:load', 'num_clients': 3, 'partition': 'iid'})
  expected = Expected.of(build.load_data(config))
  assert expected.preprocess is None
  with validate.only_from([]), pytest.raises(ValueError, match='--allow foreign_data'):
    parts_of(config, expected)
  with validate.only_from(['foreign_data']):
    made = parts_of(config, expected).preprocess({'x': X})
  np.testing.assert_array_equal(made['x'], X + 1.0)


def test_more_examples_than_noise_by_example_is_accounted_for():
  numbers = {'steps': 2, 'rate': 0.5, 'l2_clip_norm': 1.0, 'noise_multiplier': 1.0}
  config = job(algorithm={'name': 'dp_sgd', 'options': numbers}, weighting={'name': 'equal'})
  layers = parts_of(config, EXPECTED).layers
  own_data.check_counts(config, layers, 3, 5, 9)
  own_data.check_counts(config, layers, 9, 5, 9)
  with pytest.raises(ValueError, match=r"at most 9 examples, .* 'algorithm' is accounted, got 10"):
    own_data.check_counts(config, layers, 10, 5, 9)
  plain = job()
  own_data.check_counts(plain, parts_of(plain, EXPECTED).layers, 10, 5, 9)


@pytest.mark.parametrize(
  'selection, by',
  [
    ({'name': 'importance'}, "the sampler 'importance'"),
    ({'name': 'power_of_choice'}, "the sampler 'power_of_choice'"),
    ({'clock': {'deadline': 10, 'median_seconds': 5}}, r'selection\.clock'),
  ],
)
def test_draws_by_the_configured_sizes_need_them(selection, by):
  config = job(selection={'cohort_size': 3, **selection})
  layers = parts_of(config, EXPECTED).layers
  own_data.check_counts(config, layers, 5, 5, 9)
  for count in (4, 6):
    with pytest.raises(ValueError, match=rf'must hold the 5 examples .* {by} draws, got {count}'):
      own_data.check_counts(config, layers, count, 5, 9)


def test_a_task_that_a_client_cannot_tell_from_its_labels_is_refused():
  data = from_arrays(np.zeros((4, 5)), np.arange(4.0), [[0, 1], [2, 3]], task='regression')
  with pytest.raises(ValueError, match=r'the task of a job must be .* got Regression\(\)'):
    Expected.of(data)
