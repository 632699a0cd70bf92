"""The digits that come with scikit-learn: 1,797 images of 8 x 8 in 17 grey levels, 10 labels.

The split into 80% training and 20% test examples is fixed and stratified by label. No download.

Reference: Alpaydin and Kaynak (1998), Optical recognition of handwritten digits, UCI.
"""

import numpy as np

from fedjax_mem.data.preprocess import Inputs
from fedjax_mem.data.table import Table

_SPLIT_SEED = 0
_TEST_SHARE = 0.2


def load_digits() -> Table:
  """Returns the digits: train 1,438 and test 359 images, uint8 in [0, 16]."""
  # Imported here: its import takes a second, and only this data set needs it.
  from sklearn import datasets

  bunch = datasets.load_digits()
  images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.int32)
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
