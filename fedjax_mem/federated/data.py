"""A client's examples, read from the user's data loader."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_mem.data.preprocess import Inputs, default_for

_BLOCK = 1024
_INPUTS, _LABELS = ('x', 'image', 'inputs', 'features'), ('y', 'label', 'labels', 'target')


class LocalData(NamedTuple):
  """One client's examples, on the host.

  Attributes:
    x: [n, ...] inputs in their own dtype.
    y: [n] (or [n, T]) int32 labels.
    transform: batch of stored arrays -> batch of model inputs.
  """

  x: np.ndarray
  y: np.ndarray
  transform: Inputs | None

  @property
  def num_examples(self) -> int:
    """Number of examples."""
    return len(self.y)

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Shape of one example, as the model gets it."""
    return self.transform.shape if self.transform else self.x.shape[1:]

  @property
  def input_dtype(self) -> Any:
    """Dtype of an example, as the model gets it."""
    return np.dtype(np.float32) if self.transform else self.x.dtype

  def batch(self) -> dict[str, Any]:
    """Returns all examples as the model gets them: 'x' and 'y'."""
    batch = {'x': self.x, 'y': self.y}
    return self.transform(batch) if self.transform else batch


def read(loader: Any, local_epochs: int) -> LocalData:
  """Returns the examples of a client.

  They are read once and kept; the client shuffles them itself. Images in uint8 are divided by 255
  and get a channel axis, as everywhere in this package; other inputs stay as they are.

  Args:
    loader: arrays `(x, y)` or a mapping with 'x' and 'y' (or 'image' and 'label'); a TFDS data
      source, or another with random access to such examples, as a torch `Dataset` has; or an
      iterable of such batches or examples, for instance a torch `DataLoader`.
    local_epochs: number of passes over the examples in a round.

  Raises:
    ValueError: a one-shot iterator for several epochs, no examples, labels that are no integers,
      inputs that are not finite, or arrays of different lengths.
  """
  if _is_source(loader):
    x, y = _from_source(loader)
  elif isinstance(loader, Mapping) or _is_pair(loader):
    x, y = _pair(loader)
  else:
    x, y = _from_batches(loader, local_epochs)
  return _checked(x, y)


def _is_pair(loader: Any) -> bool:
  """Returns whether a loader is two arrays, and not two batches."""
  if not isinstance(loader, tuple | list) or len(loader) != 2:
    return False
  return all(hasattr(x, 'shape') or hasattr(x, '__array__') for x in loader)


def _is_source(loader: Any) -> bool:
  """Returns whether a loader has random access to single examples."""
  kind = type(loader)
  plain = hasattr(kind, '__getitem__') and not hasattr(kind, '__iter__')
  return hasattr(kind, '__len__') and (hasattr(kind, '__getitems__') or plain)


def _pair(batch: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns (inputs, labels) of a batch or of an example."""
  if isinstance(batch, Mapping):
    x = next((batch[name] for name in _INPUTS if name in batch), None)
    y = next((batch[name] for name in _LABELS if name in batch), None)
    if x is None or y is None:
      raise ValueError(
        f"data_loader must give mappings with 'x' and 'y' (or 'image' and 'label'), got "
        f'{sorted(map(str, batch))!r}.'
      )
  elif isinstance(batch, tuple | list) and len(batch) == 2:
    x, y = batch
  else:
    raise ValueError(
      'data_loader must give batches (x, y) or mappings with both, got an object of '
      f'{type(batch).__name__}.'
    )
  return np.asarray(x), np.asarray(y)


def _from_source(source: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns all examples of a data source with random access."""
  rows = []
  for start in range(0, len(source), _BLOCK):
    block = list(range(start, min(start + _BLOCK, len(source))))
    many = getattr(source, '__getitems__', lambda block: [source[i] for i in block])
    rows += [_pair(example) for example in many(block)]
  if not rows:
    raise ValueError('data_loader must hold at least one example, got none.')
  return np.stack([x for x, _ in rows]), np.stack([y for _, y in rows])


def _from_batches(loader: Any, local_epochs: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the examples of all batches of an iterable."""
  try:
    batches = iter(loader)
  except TypeError as error:
    raise ValueError(
      'data_loader must be arrays, a data source or an iterable of batches, got an object of '
      f'{type(loader).__name__}.'
    ) from error
  if batches is loader and local_epochs > 1:
    raise ValueError(
      f'data_loader must be one that can be iterated again for {local_epochs} local epochs, got a '
      f'one-shot {type(loader).__name__}: give a list of its batches.'
    )
  pairs = [_pair(batch) for batch in batches]
  if not pairs:
    raise ValueError('data_loader must hold at least one batch, got none.')
  join = np.stack if all(y.ndim == 0 for _, y in pairs) else np.concatenate  # examples, or batches
  try:
    return join([x for x, _ in pairs]), join([y for _, y in pairs])
  except ValueError as error:
    raise ValueError(f'the batches of data_loader must be of one shape: {error}') from error


def _checked(x: np.ndarray, y: np.ndarray) -> LocalData:
  """Returns the checked examples: labels as int32, inputs as float32, uint8 or int32 (tokens)."""
  if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or not len(y):
    raise ValueError(
      'data_loader must hold as many inputs as labels, at least one, got shapes '
      f'{x.shape!r} and {y.shape!r}.'
    )
  if x.dtype.kind not in 'uif':
    raise ValueError(f'the inputs of data_loader must be numbers, got {x.dtype}.')
  if x.dtype.kind == 'f':
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
      raise ValueError('the inputs of data_loader must be finite, got NaN or infinity in them.')
  elif x.dtype != np.uint8:
    x = x.astype(np.int32)  # tokens
  if y.dtype.kind not in 'ui':
    raise ValueError(f'the labels of data_loader must be integers, got {y.dtype}.')
  if y.min() < 0 or y.max() > np.iinfo(np.int32).max:
    raise ValueError(f'the labels of data_loader must be >= 0, got {y.min()} to {y.max()}.')
  return LocalData(x, y.astype(np.int32), default_for(x) if x.dtype == np.uint8 else None)
