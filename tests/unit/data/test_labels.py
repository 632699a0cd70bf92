"""Labels of any kind: what they become, and what is refused by its row."""

import numpy as np
import pytest

from fedjax_mem.data.labels import encode, values
from fedjax_mem.tasks import Classification, MultiLabel, NextToken, Regression


@pytest.mark.parametrize(
  ('y', 'numbers', 'labels'),
  [
    (['b', 'a', 'b'], [1, 0, 1], ('a', 'b')),
    ([3, 1, 3], [1, 0, 1], (1, 3)),
    ([-1, 1], [0, 1], (-1, 1)),
    ([True, False], [1, 0], (False, True)),
    (np.array(['no', 'yes'], object), [0, 1], ('no', 'yes')),
    ([0, 2, 1], [0, 2, 1], None),
    ([0, 4], [0, 4], None),  # they start at 0: as they are
  ],
)
def test_classes_that_are_no_numbers_from_0_are_numbered_in_their_order(y, numbers, labels):
  found = encode(y, y)
  assert found.y.dtype == np.int32 and found.y.tolist() == found.test_y.tolist() == numbers
  assert found.labels == labels and found.task == Classification()
  assert found.num_classes == (1 + max(numbers))


def test_numbers_several_labels_and_tokens():
  found = encode([1, 2], task='regression')
  assert found.task == Regression() and found.y.dtype == np.float32 and found.num_classes == 1
  assert encode(np.ones((4, 3)), task=Regression()).num_classes == 3
  hot = encode([[1, 0], [0, 1]], [[1, 1]], 'multi_label')
  assert hot.task == MultiLabel() and hot.y.dtype == hot.test_y.dtype == np.uint8
  assert hot.num_classes == 2 and hot.test_y.tolist() == [[1, 1]]
  tokens = encode(np.array([[1, 2], [3, 0]]))
  assert tokens.task == NextToken() and tokens.num_classes == 4 and tokens.y.dtype == np.int32


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'y': [1.5, 2.0]}, r"^kind must be integers or strings .* got float64 .*task = 'regression'"),
    ({'y': [1.0, np.nan], 'task': 'regression'}, 'kind must have a value .* got .*nan.* in row 1'),
    ({'y': [1.0, np.inf], 'task': 'regression'}, 'kind must be finite, got inf in row 1'),
    ({'y': ['a', None, 'b']}, 'kind must have a value in every row, got None in row 1'),
    ({'y': ['a', 'b'], 'task': 'regression'}, "must be numbers .* for the task 'regression'"),
    ({'y': ['a', 'b'], 'test_y': ['b', 'c']}, "got 'c' only in the test set, in its row 1"),
    ({'y': [0, 1], 'test_y': [0, 2]}, 'got 2 only in the test set, in its row 1'),
    ({'y': [0, 1], 'test_y': ['a']}, 'test kind must be of the kind of kind'),
    ({'y': [[1, 0], [2, 0]], 'task': 'multi_label'}, r'kind must be 0 or 1, got \[2, 0\] in row 1'),
    ({'y': [0, 1], 'task': 'multi_label'}, r'must be 0 or 1 \[T, K\]'),
    ({'y': [[1], [1, 2]]}, 'must be of one shape in every row'),
    ({'y': [0, 1], 'test_y': [[0]]}, 'test kind must be shaped like kind'),
    ({'y': ['a', 1]}, r'got 1 in row 1|got .* strings'),
  ],
)
def test_what_does_not_fit_is_named_by_its_row(given, message):
  with pytest.raises(ValueError, match=message) as caught:
    encode(**given, what='kind')
  assert '\n' not in str(caught.value)


def test_missing_values_of_pandas_are_seen_without_it():
  class NAType:
    pass

  for missing in (NAType(), float('nan'), None):
    with pytest.raises(ValueError, match='must have a value in every row'):
      values('y', np.array([1, missing], object))
  mixed = np.array(['a', 1], object)
  with pytest.raises(ValueError, match='numbers only, or strings only, got 1 in row 1'):
    values('y', mixed)
