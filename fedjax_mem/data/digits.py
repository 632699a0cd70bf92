"""The digits that come with scikit-learn: 1,797 images of 8 x 8 in 17 grey levels, 10 labels.

The split into 80% training and 20% test examples is fixed and stratified by label. No download.

Reference: Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI.
"""

import gzip
import importlib.util
import pathlib

import numpy as np

from fedjax_mem.data.preprocess import Inputs
from fedjax_mem.data.table import Table

_SPLIT_SEED = 0
_TEST_SHARE = 0.2


def load_digits() -> Table:
  """Returns the digits: train 1,438 and test 359 images, uint8 in [0, 16]."""
  images, labels = _read()
  rng = np.random.default_rng(_SPLIT_SEED)
  is_test = np.zeros(len(labels), bool)
  for label in range(10):
    rows = rng.permutation(np.flatnonzero(labels == label))
    is_test[rows[: round(_TEST_SHARE * len(rows))]] = True
  return Table(
    name='digits',
    arrays={'x': images[~is_test], 'y': labels[~is_test]},
    test={'x': images[is_test], 'y': labels[is_test]},
    num_classes=10,
    input_shape=(8, 8, 1),
    preprocess=Inputs((8, 8, 1), 16.0),
  )


def _read() -> tuple[np.ndarray, np.ndarray]:
  """Returns (images [1797, 8, 8] uint8, labels [1797] int32)."""
  # From the file itself: importing scikit-learn takes as long as a first round.
  found = importlib.util.find_spec('sklearn')
  places = [] if found is None else found.submodule_search_locations or []
  for place in places:
    file = pathlib.Path(place) / 'datasets' / 'data' / 'digits.csv.gz'
    if file.exists():
      with gzip.open(file) as lines:
        table = np.loadtxt(lines, delimiter=',', dtype=np.int32)
      return table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1]
  from sklearn import datasets

  bunch = datasets.load_digits()
  return bunch.images.astype(np.uint8), bunch.target.astype(np.int32)
