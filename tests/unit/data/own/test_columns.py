"""Tables: pandas, pyarrow, CSV and Parquet give the same examples, and bad ones are named."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

import fedjax_mem as fm
from fedjax_mem.data import from_csv, from_parquet, from_table
from fedjax_mem.tasks import MultiLabel

RNG = np.random.default_rng(3)
FRAME = pd.DataFrame(
  {
    'shop': RNG.choice(['north', 'south', 'west'], 40),
    'size': RNG.normal(size=40),
    'age': RNG.integers(0, 9, 40),
    'price': RNG.normal(size=40),
    'kind': RNG.choice(['food', 'toys'], 40),
    'a': RNG.integers(0, 2, 40),
    'b': RNG.integers(0, 2, 40),
  }
)
FRAME['people'] = FRAME['shop'].map({'north': 5.0, 'south': 1.5, 'west': 2.0})
OPTIONS = {'client': 'shop', 'features': ['size', 'age'], 'weight': 'people', 'task': 'regression'}


def same(a, b):
  for name in ('x', 'y'):
    assert np.array_equal(a.arrays[name], b.arrays[name])
    assert np.array_equal(a.test[name], b.test[name])
  assert a.clients == b.clients and np.array_equal(a.client_ids, b.client_ids)
  assert np.array_equal(a.test_client_ids, b.test_client_ids)


def test_every_form_of_a_table_gives_the_same_examples(tmp_path):
  FRAME.to_csv(tmp_path / 'shops.csv', index=False)
  arrow = pa.Table.from_pandas(FRAME, preserve_index=False)
  parquet.write_table(arrow, tmp_path / 'shops.parquet')
  table = from_table(FRAME, 'price', **OPTIONS)
  same(table, from_table(arrow, 'price', **OPTIONS))
  same(table, from_table({k: FRAME[k].tolist() for k in FRAME}, 'price', **OPTIONS))
  same(table, from_csv(tmp_path / 'shops.csv', 'price', **OPTIONS))
  same(table, from_parquet(tmp_path / 'shops.parquet', 'price', **OPTIONS))
  assert table.arrays['x'].dtype == np.float32 and table.input_shape == (2,)
  assert len(table.test['y']) == sum(round(0.2 * n) for n in FRAME['shop'].value_counts())
  data = fm.data.distribute(table)
  assert data.clients == ('north', 'south', 'west') and data.weights.tolist() == [5.0, 1.5, 2.0]
  for i, shop in enumerate(data.clients):
    own = FRAME[FRAME['shop'] == shop]
    rows = np.concatenate([data.arrays['x'][data.rows(i)], data.test['x'][data.test_clients == i]])
    expected = own[['size', 'age']].to_numpy(np.float32)
    assert sorted(map(tuple, rows)) == sorted(map(tuple, expected))


def test_classes_several_targets_and_a_partition_by_another_column():
  kinds = from_table(FRAME, 'kind', features=['size'], test=FRAME[:6])
  assert kinds.labels == ('food', 'toys') and kinds.client_ids is None
  assert [kinds.labels[i] for i in kinds.test['y']] == FRAME['kind'][:6].tolist()
  by_age = fm.data.distribute(kinds, 'column', column='age')
  assert by_age.clients == tuple(map(str, sorted(set(FRAME['age']))))
  hot = from_table(FRAME, ['a', 'b'], features=['size'], task='multi_label', client='shop')
  assert hot.task == MultiLabel() and hot.labels == ('a', 'b') and hot.num_classes == 2
  data = fm.data.distribute(hot)
  counts, names = data.shown()
  assert names == ['a', 'b'] and counts.sum() == hot.arrays['y'].sum()


def changed(**columns):
  table = {name: FRAME[name].tolist() for name in FRAME}
  for name, (row, value) in columns.items():
    table[name] = [*table[name][:row], value, *table[name][row + 1 :]]
  return table


@pytest.mark.parametrize(
  ('table', 'options', 'message'),
  [
    (FRAME, {'target': 'prize'}, "target must be one of .* got 'prize'. Did you mean 'price'"),
    (FRAME, {'client': 'shops'}, "client must be one of .*Did you mean 'shop'"),
    (FRAME, {'features': ['sise']}, "features must be one of .*Did you mean 'size'"),
    (FRAME, {'weight': 'poeple'}, "weight must be one of .*Did you mean 'people'"),
    (FRAME, {'test': FRAME.drop(columns='size')}, "test features must be one of .*got 'size'"),
    (changed(price=(3, np.nan)), {}, "column 'price' must have a value .* nan.* in row 3"),
    (changed(size=(4, np.nan)), {}, "column 'size' must have a value .* in row 4"),
    (changed(size=(4, np.inf)), {}, "column 'size' must be finite, got .*inf.* in row 4"),
    (changed(shop=(5, None)), {}, "column 'shop' must have a value .* None in row 5"),
    (FRAME, {'features': ['size', 'kind']}, "column 'kind' must be numbers, got '.*' in row 0"),
    (changed(people=(6, 0.0)), {}, "column 'people' must be weights > 0, got 0 in row 6"),
    (FRAME, {'task': None}, "column 'price' must be integers or strings"),
    (FRAME, {'target': ['a', 'b'], 'task': None}, 'target must be a column, or several .* None'),
    ({}, {}, 'target must be one of'),
    (3, {}, 'table must be a pandas DataFrame, .* got int'),
  ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_column_and_row(table, options, message):
  with pytest.raises(ValueError, match=message) as caught:
    from_table(table, **{'target': 'price', **OPTIONS, **options})
  assert '\n' not in str(caught.value)


def test_weights_that_differ_within_a_client_and_labels_of_the_test_set_alone_are_refused():
  table = from_table(changed(people=(7, 9.0)), 'price', **OPTIONS, test_share=0)
  with pytest.raises(
    ValueError, match=r"the same in all rows of a client, got .* for client '\w+'"
  ):
    fm.data.distribute(table)
  test = FRAME[:3].assign(shop=['west', 'north', 'abroad'])
  assert from_table(FRAME, 'price', **OPTIONS, test=test).test_client_ids.tolist() == [2, 0, -1]
  test = FRAME[:3].assign(kind=['food', 'pets', 'toys'])
  with pytest.raises(
    ValueError, match=r"column 'kind' .* got 'pets' only in the test set, in its r"
  ):
    from_table(FRAME, 'kind', features=['size'], test=test)


def test_files_that_are_no_tables_are_named(tmp_path):
  file = tmp_path / 'broken.csv'
  for text, message in (
    ('a,b\n1,2\n3\n', 'must have 2 fields in every row, got 1 in row 1'),
    ('a,a\n1,2\n', "must name each column once, got 'a' twice"),
    ('', 'must be a CSV file with a line of names'),
    ('a,b\n1,\n2,3\n', "column 'b' must have a value in every row, got None in row 0"),
  ):
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
      from_csv(file, 'b')
  with pytest.raises(ValueError, match=r'broken.csv must be a Parquet file'):
    from_parquet(file, 'b')
  with pytest.raises(ValueError, match='must be a file that exists'):
    from_csv(tmp_path / 'nothing.csv', 'b')


def test_a_table_without_a_row_is_refused():
  with pytest.raises(ValueError, match='the table must have at least one row, got columns'):
    from_table(FRAME[:0], 'price', **OPTIONS)


def test_a_weight_that_is_no_number_is_refused_with_its_client():
  data = {name: (np.ones((2, 1)), np.array([0, 1])) for name in 'ab'}
  with pytest.raises(ValueError, match="weights must be finite and > 0, got nan for client 'a'"):
    fm.data.distribute(fm.data.from_clients(data, weights=[np.nan, 1.0]))
