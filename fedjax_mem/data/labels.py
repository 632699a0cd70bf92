"""Labels as users have them, strings or numbers of any kind, as a task takes them."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_mem.tasks import Classification, LearningTask, MultiLabel, NextToken, as_task

_INT32_MAX = np.iinfo(np.int32).max
_ABSENT = ('NAType', 'NaTType')  # pandas' missing values, without importing it


class Encoded(NamedTuple):
  """Labels as a model is trained with.

  Attributes:
    task: what it learns.
    y: labels of the training examples, [T, ...].
    test_y: labels of the test set.
    num_classes: K.
    labels: what the user calls the K classes; None: 0 … K - 1.
  """

  task: LearningTask
  y: np.ndarray
  test_y: np.ndarray
  num_classes: int
  labels: tuple[Any, ...] | None


def encode(
  y: Any,
  test_y: Any = None,
  task: LearningTask | str | None = None,
  num_classes: int | None = None,
  what: str = 'y',
) -> Encoded:
  """Returns labels as a task takes them.

  Classes that are strings or do not start at 0 are numbered in their order.

  >>> encode([3, 1, 3]).y.tolist(), encode([3, 1, 3]).labels
  ([1, 0, 1], (1, 3))

  Args:
    y: [T] integers, strings or booleans for 'classification'; [T] or [T, K] numbers for
      'regression'; [T, K] of 0 and 1 for 'multi_label'; [T, L] integers for 'next_token'.
    test_y: those of the test set; None: there is none.
    task: the task, or its name; None: 'next_token' for [T, L], else 'classification'.
    num_classes: K, of integers in [0, K) that are taken as they are; None: as the labels say.
    what: what holds the labels, for messages.

  Raises:
    ValueError: labels that are missing or do not fit the task, or a class that only the test set
      has; the message names `what` and the row.
  """
  y = values(what, y)
  tested = y[:0] if test_y is None else values(f'test {what}', test_y)
  if task is None:
    chosen: LearningTask = NextToken() if y.ndim == 2 else Classification()
  else:
    chosen = as_task(task)
  if tested.shape[1:] != y.shape[1:]:
    raise ValueError(f'test {what} must be shaped like {what}, got {tested.shape!r}, {y.shape!r}.')
  if isinstance(chosen, Classification | NextToken):
    return _classes(chosen, y, tested, num_classes, what)
  dtype = np.dtype(np.uint8 if isinstance(chosen, MultiLabel) else np.float32)
  both = [_numbers(w, v, chosen.name, dtype) for w, v in ((what, y), (f'test {what}', tested))]
  width = int(np.prod(y.shape[1:], dtype=np.int64))
  return Encoded(chosen, both[0], both[1], num_classes or width, None)


def values(what: str, given: Any) -> np.ndarray:
  """Returns values [T, ...] as an array of numbers or strings.

  Args:
    what: what they are, for messages.
    given: an array, or a sequence.

  Raises:
    ValueError: a value is missing (None, NaN, NaT, pandas' NA), or they are not of one kind.
  """
  try:
    array = np.asarray(given)
    if array.dtype.kind == 'U' and not isinstance(given, np.ndarray):
      array = np.asarray(given, object)  # NumPy would make a string of a number among strings
  except ValueError:
    raise ValueError(f'{what} must be of one shape in every row, got rows that differ.') from None
  if array.dtype.kind == 'f':
    bad = np.isnan(array)
  elif array.dtype.kind == 'M':
    bad = np.isnat(array)
  elif array.dtype == object:
    bad = np.array([_absent(x) for x in array.reshape(-1)], bool).reshape(array.shape)
  else:
    bad = np.zeros(0, bool)
  if bad.any():
    row = int(np.argwhere(bad)[0][0])
    raise ValueError(
      f'{what} must have a value in every row, got {shown(array[row])} in row {row}.'
    )
  if array.dtype == object:
    kinds = {str if isinstance(x, str) else object for x in array.reshape(-1)}
    plain = np.array(array.tolist())
    if plain.dtype == object or (plain.dtype.kind == 'U' and kinds != {str}):
      row = next(i for i, x in enumerate(array) if type(x) is not type(array.reshape(-1)[0]))
      raise ValueError(
        f'{what} must be numbers only, or strings only, got {array[row]!r} in row {row}.'
      )
    array = plain
  return array


def shown(x: Any) -> str:
  """Returns a value of an array as text."""
  return repr(x.tolist() if isinstance(x, np.generic | np.ndarray) else x)


def _absent(x: Any) -> bool:
  return x is None or type(x).__name__ in _ABSENT or (isinstance(x, float) and x != x)


def _classes(
  task: LearningTask, y: np.ndarray, tested: np.ndarray, num_classes: int | None, what: str
) -> Encoded:
  dims = 2 if isinstance(task, NextToken) else 1
  whole = y.dtype.kind in ('iu' if dims == 2 or num_classes else 'iubUS')
  if not whole or y.ndim != dims:
    kinds = 'integers' if dims == 2 or num_classes else 'integers or strings'
    shape = '[T, L]' if dims == 2 else '[T]'
    raise ValueError(
      f'{what} must be {kinds} {shape} for the task {task.name!r}, got {y.dtype} {y.shape!r}: '
      "task = 'regression' learns numbers, 'multi_label' several labels at once."
    )
  if tested.dtype.kind not in ('iub' if y.dtype.kind in 'iub' else 'US') and len(tested):
    raise ValueError(f'test {what} must be of the kind of {what}, {y.dtype}, got {tested.dtype}.')
  numbered = y.dtype.kind in 'iu' and (not len(y) or y.min() >= 0)
  if dims == 2 or (numbered and (num_classes or not len(y) or y.min() == 0)):
    return _as_they_are(task, y, tested, num_classes, what)
  names, numbers = np.unique(y, return_inverse=True)
  _check_known(names, tested, what)
  test_numbers = np.searchsorted(names, tested) if len(tested) else np.zeros(0)
  return Encoded(
    task, numbers.astype(np.int32), test_numbers.astype(np.int32), len(names), tuple(names.tolist())
  )


def _as_they_are(
  task: LearningTask, y: np.ndarray, tested: np.ndarray, num_classes: int | None, what: str
) -> Encoded:
  for part, one in ((what, y), (f'test {what}', tested)):
    if len(one) and (one.min() < 0 or one.max() > _INT32_MAX):
      raise ValueError(f'{part} must be in [0, 2**31), got {one.min()} to {one.max()}.')
  if num_classes is None:
    num_classes = 1 + int(max(y.max(initial=0), tested.max(initial=0)))
    if y.ndim == 1:
      _check_known(np.unique(y), tested, what)
  return Encoded(task, y.astype(np.int32), tested.astype(np.int32), num_classes, None)


def _check_known(names: np.ndarray, tested: np.ndarray, what: str) -> None:
  new = np.flatnonzero(~np.isin(tested, names))
  if len(new):
    row = int(new[0])
    raise ValueError(
      f'labels of {what} must be those of the training examples, got {tested[row].item()!r} only '
      f'in the test set, in its row {row}.'
    )


def _numbers(what: str, y: np.ndarray, task: str, dtype: np.dtype) -> np.ndarray:
  """Returns labels as float32 numbers, or as uint8 of 0 and 1."""
  hot = dtype == np.uint8
  if y.dtype.kind not in 'iufb' or y.ndim not in ((2,) if hot else (1, 2)):
    wanted = '0 or 1 [T, K]' if hot else 'numbers [T] or [T, K]'
    raise ValueError(f'{what} must be {wanted} for the task {task!r}, got {y.dtype} {y.shape!r}.')
  bad = ~np.isin(y, (0, 1)) if hot else ~np.isfinite(y)
  if bad.any():
    row = int(np.argwhere(bad)[0][0])
    raise ValueError(
      f'{what} must be {"0 or 1" if hot else "finite"}, got {y[row].tolist()!r} in row {row}.'
    )
  return y.astype(dtype)
