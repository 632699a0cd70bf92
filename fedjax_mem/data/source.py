"""A population on the host: examples stored once, and the list of rows that each client holds.

Letters in shapes: T stored examples, N clients, M entries in all clients' lists together (M = T if
every example belongs to exactly one client; M may be larger if lists repeat examples).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Population, validate
from fedjax_mem.data.partition import Partition
from fedjax_mem.data.preprocess import Batch, default_for, row_bytes

Arrays = dict[str, np.ndarray]
_INT32_MAX = np.iinfo(np.int32).max


class HeldOut(NamedTuple):
  """Examples that clients hold and do not train on.

  Attributes:
    index: [H] int32, rows of the data's `arrays`, client after client.
    offsets: [N+1] int64; those of client i are index[offsets[i]:offsets[i+1]], possibly none.
  """

  index: np.ndarray  # type: ignore[assignment]
  offsets: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class FederatedData:
  """N clients, their examples and a test set, as NumPy arrays (possibly memory-mapped).

  Attributes:
    name: name of the data set.
    arrays: 'x' [T, ...] in its stored dtype, 'y' [T] (or [T, L] tokens) int32.
    index: [M] int32, rows of `arrays`, client after client.
    offsets: [N+1] int64; client i holds index[offsets[i]:offsets[i+1]].
    test: 'x' and 'y' of the test set, stored like `arrays`.
    num_classes: number of classes; labels are in [0, num_classes).
    input_shape: shape of a preprocessed 'x', without the batch axis.
    preprocess: jittable, batch of stored arrays -> batch of model inputs.
    clients: names of the N clients, or None.
    unused_labels: labels of which no client holds an example.
    test_clients: [test examples] int32, the client that each test example belongs to, -1 for none
      of the N; None if test examples belong to no clients.
    validation: 'x' and 'y' of the server's validation split, stored like `arrays`: examples that
      no client holds and that are not in the test set; None: there is none.
    held: what clients hold beside `index`, to score a model on; None: nothing.
  """

  name: str
  arrays: Arrays
  index: np.ndarray
  offsets: np.ndarray
  test: Arrays
  num_classes: int
  input_shape: tuple[int, ...]
  preprocess: Callable[[Batch], Batch]
  clients: tuple[str, ...] | None = None
  unused_labels: tuple[int, ...] = ()
  test_clients: np.ndarray | None = None
  validation: Arrays | None = None
  held: HeldOut | None = None

  def __post_init__(self) -> None:
    validate.integer(num_classes=self.num_classes)
    parts = [('arrays', self.arrays), ('test', self.test)]
    if self.validation is not None:
      parts.append(('validation', self.validation))
    for part, arrays in parts:
      check_arrays(part, arrays, self.num_classes)
    check_lists(self.index, self.offsets, len(self.arrays['y']))
    if self.clients is not None and len(self.clients) != self.num_clients:
      raise ValueError(
        f'clients must be {self.num_clients} names, one a client, got {len(self.clients)}.'
      )

  @property
  def num_clients(self) -> int:
    """Number of clients, N."""
    return len(self.offsets) - 1

  @property
  def counts(self) -> np.ndarray:
    """Number of examples of each client, [N] int64."""
    return np.diff(self.offsets)

  @property
  def nbytes(self) -> int:
    """Bytes that `population` takes on the device."""
    lists = 4 * (len(self.index) + 2 * self.num_clients)
    return len(self.arrays['y']) * row_bytes(self.arrays) + lists

  def rows(self, client: int) -> np.ndarray:
    """Returns the rows [n_k] of `arrays` that a client holds."""
    return self.index[self.offsets[client] : self.offsets[client + 1]]

  def population(self) -> Population:
    """Returns the whole population on the device, in the stored dtypes."""
    return Population(
      {name: jnp.asarray(x) for name, x in self.arrays.items()},
      jnp.asarray(self.index, jnp.int32),
      jnp.asarray(self.offsets[:-1], jnp.int32),
      jnp.asarray(self.counts, jnp.int32),
    )

  def label_counts(self) -> np.ndarray:
    """Returns the examples of each label that each client holds, [N, num_classes] int64.

    Raises:
      ValueError: the labels are sequences of tokens.
    """
    labels = self.arrays['y']
    if labels.ndim != 1:
      raise ValueError(f'y must be one label an example, got shape {labels.shape!r}.')
    owner = np.repeat(np.arange(self.num_clients, dtype=np.int64), self.counts)
    cell = owner * self.num_classes + np.asarray(labels)[self.index]
    flat = np.bincount(cell, minlength=self.num_clients * self.num_classes)
    return flat.reshape(self.num_clients, self.num_classes)

  def shown(self) -> tuple[np.ndarray, list[str] | None]:
    """Returns (counts, names of the columns or None) of what a plot of the partition shows.

    These are `label_counts`; for sequences of tokens, how many each client has, [N, 1].
    """
    if self.arrays['y'].ndim == 1:
      return self.label_counts(), None
    return np.asarray(self.counts, np.int64)[:, None], ['sequences']


def check_arrays(part: str, arrays: Arrays, num_classes: int) -> None:
  """Raises `ValueError` unless 'x' and 'y' agree and labels are int32 in [0, num_classes)."""
  if not {'x', 'y'} <= set(arrays):
    raise ValueError(f"{part} must hold 'x' and 'y', got {sorted(arrays)!r}.")
  lengths = {name: len(x) for name, x in arrays.items()}
  if len(set(lengths.values())) != 1 or max(lengths.values()) > _INT32_MAX:
    raise ValueError(f'{part} must be of one length below 2**31, got {lengths!r}.')
  y = arrays['y']
  if y.dtype != np.int32:
    raise ValueError(f"{part}['y'] must be int32, got {y.dtype}.")
  # Memory-mapped labels were checked when written; a check here would read the whole file.
  if len(y) and not isinstance(y, np.memmap):
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
      raise ValueError(
        f'labels of {part} must be in [0, num_classes = {num_classes}), got {low} to {high}.'
      )


def check_lists(index: np.ndarray, offsets: np.ndarray, num_rows: int) -> None:
  """Raises `ValueError` unless every client holds at least one example and all rows exist."""
  if index.dtype != np.int32 or index.ndim != 1:
    raise ValueError(f'index must be int32 [M], got {index.dtype} {index.shape!r}.')
  if offsets.dtype != np.int64 or offsets.ndim != 1 or len(offsets) < 2:
    raise ValueError(f'offsets must be int64 [N + 1], got {offsets.dtype} {offsets.shape!r}.')
  if offsets[0] != 0 or offsets[-1] != len(index) or len(index) > _INT32_MAX:
    raise ValueError(
      f'offsets must run from 0 to the length of index = {len(index)} (below 2**31), '
      f'got {int(offsets[0])} to {int(offsets[-1])}.'
    )
  counts = np.diff(offsets)
  if (counts < 1).any():
    raise ValueError(
      f'every client must hold at least one example, got {int(counts.min())} '
      f'for client {int(counts.argmin())}.'
    )
  if index.min() < 0 or index.max() >= num_rows:
    raise ValueError(
      f'index must be rows in [0, {num_rows}), got {int(index.min())} to {int(index.max())}.'
    )


def from_arrays(
  x: Any,
  y: Any,
  partition: Partition | Sequence[Any],
  *,
  test: tuple[Any, Any] | None = None,
  num_classes: int | None = None,
  preprocess: Callable[[Batch], Batch] | None = None,
  clients: tuple[str, ...] | None = None,
  name: str = 'arrays',
) -> FederatedData:
  """Returns the user's own arrays as a population.

  >>> data = from_arrays(np.zeros((4, 2), np.float32), [0, 1, 1, 2], [[0, 1, 2], [3]])
  >>> data.counts.tolist(), data.num_classes
  ([3, 1], 3)

  Args:
    x: [T, ...] inputs; uint8 is divided by 255 unless `preprocess` is given.
    y: [T] integer labels, or [T, L] tokens.
    partition: from `partition.partition(...)`, or one array of rows per client.
    test: inputs and labels of the test set; None: there is none.
    num_classes: number of classes; None: the largest label + 1.
    preprocess: jittable and hashable function, batch -> batch; None: see `preprocess.default_for`.
    clients: names of the clients.
    name: name of the data set.

  Raises:
    ValueError: arrays of different lengths, labels that are no integers or out of range, inputs
      that are not finite, rows that do not exist, or a client without examples.
  """
  x, y = np.asarray(x), _labels('y', y)
  test_x, test_y = (x[:0], y[:0]) if test is None else test
  test_x, test_y = np.asarray(test_x), _labels('test y', test_y)
  for part, values in (('x', x), ('test x', test_x)):
    if np.issubdtype(values.dtype, np.inexact) and not np.isfinite(values).all():
      raise ValueError(f'{part} must be finite, got NaN or infinity in it.')
  if num_classes is None:
    num_classes = 1 + int(max(y.max(initial=0), test_y.max(initial=0)))
  if not isinstance(partition, Partition):
    partition = Partition.of([np.asarray(rows) for rows in partition])
  preprocess = preprocess or default_for(x)
  like = {
    'x': jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype),
    'y': jax.ShapeDtypeStruct((1, *y.shape[1:]), y.dtype),
  }
  input_shape = jax.eval_shape(preprocess, like)['x'].shape[1:]
  return FederatedData(
    name,
    {'x': x, 'y': y},
    partition.index,
    partition.offsets,
    {'x': test_x, 'y': test_y},
    num_classes,
    input_shape,
    preprocess,
    clients,
    partition.unused_labels,
  )


def _labels(name: str, y: Any) -> np.ndarray:
  labels: np.ndarray = np.asarray(y)
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f'{name} must be integers, got {labels.dtype}.')
  if len(labels) and (labels.min() < 0 or labels.max() > _INT32_MAX):
    raise ValueError(f'{name} must be in [0, 2**31), got {labels.min()} to {labels.max()}.')
  return labels.astype(np.int32)
