"""The digits: the same fixed, stratified split always."""

import numpy as np
from sklearn import datasets

from fedjax_mem.data.digits import load_digits


def test_split_is_fixed_stratified_and_complete():
  table, again = load_digits(), load_digits()
  assert len(table.arrays['y']) == 1438 and len(table.test['y']) == 359
  assert np.array_equal(table.test['x'], again.test['x'])
  train, test = (np.bincount(part['y'], minlength=10) for part in (table.arrays, table.test))
  assert np.all(np.abs(test / (train + test) - 0.2) < 0.005)
  both = np.concatenate([table.arrays['x'], table.test['x']]).reshape(1797, -1)
  published = datasets.load_digits().data.astype(np.uint8)
  assert np.array_equal(np.sort(both.view('S64').ravel()), np.sort(published.view('S64').ravel()))


def test_inputs_are_scaled_to_one():
  table = load_digits()
  x = table.preprocess(table.arrays)['x']
  assert x.shape == (1438, 8, 8, 1) and x.dtype == np.float32
  assert x.min() == 0 and x.max() == 1
