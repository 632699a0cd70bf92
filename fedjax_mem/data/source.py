"""A population on the host: examples stored once, and the list of rows that each client holds.

Letters in shapes: T stored examples, N clients, M entries in all clients' lists together (M = T if
every example belongs to exactly one client; M may be larger if lists repeat examples).
"""

import dataclasses
import hashlib
import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_mem.core import Population, validate
from fedjax_mem.data.labels import encode
from fedjax_mem.data.partition import Partition
from fedjax_mem.data.preprocess import Batch, default_for, row_bytes
from fedjax_mem.tasks import Classification, LearningTask, MultiLabel, NextToken

Arrays = dict[str, np.ndarray]
_INT32_MAX = np.iinfo(np.int32).max
_LINE = 64  # bytes
_READ = 1 << 24  # bytes of a memory-mapped array that are read at a time


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
    arrays: 'x' [T, ...] in its stored dtype, and the labels 'y' as the task takes them: [T] int32
      classes, [T, L] int32 tokens, [T] or [T, K] float32 numbers, [T, K] uint8 of 0 and 1.
    index: [M] int32, rows of `arrays`, client after client.
    offsets: [N+1] int64; client i holds index[offsets[i]:offsets[i+1]].
    test: 'x' and 'y' of the test set, stored like `arrays`.
    num_classes: number of classes, labels being in [0, num_classes); for other tasks K.
    input_shape: shape of a preprocessed 'x', without the batch axis.
    preprocess: jittable, batch of stored arrays -> batch of model inputs.
    clients: names of the N clients, or None.
    unused_labels: labels of which no client holds an example.
    test_clients: [test examples] int32, the client that each test example belongs to, -1 for none
      of the N; None if test examples belong to no clients.
    validation: 'x' and 'y' of the server's validation split, stored like `arrays`: examples that
      no client holds and that are not in the test set; None: there is none.
    held: what clients hold beside `index`, to score a model on; None: nothing.
    task: what a model learns; None: the next token if 'y' is [T, L], else classification.
    labels: what the user calls the K classes or labels, strings or numbers; None: 0 … K - 1.
    weights: [N] float32 > 0, how much each client counts in the average (the weighting 'given');
      None: the data do not say.
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
  task: LearningTask = None  # type: ignore[assignment]  # never None once it is made
  labels: tuple[Any, ...] | None = None
  weights: np.ndarray | None = None

  def __post_init__(self) -> None:
    validate.integer(num_classes=self.num_classes)
    if self.task is None:
      sequences = self.arrays['y'].ndim == 2 if 'y' in self.arrays else False
      object.__setattr__(self, 'task', NextToken() if sequences else Classification())
    parts = [('arrays', self.arrays), ('test', self.test)]
    if self.validation is not None:
      parts.append(('validation', self.validation))
    for part, arrays in parts:
      check_arrays(part, arrays)
      self.task.check(part, arrays['y'], self.num_classes)
    check_lists(self.index, self.offsets, len(self.arrays['y']))
    if self.clients is not None and len(self.clients) != self.num_clients:
      raise ValueError(
        f'clients must be {self.num_clients} names, one a client, got {len(self.clients)}.'
      )
    if self.labels is not None and len(self.labels) != self.num_classes:
      raise ValueError(f'labels must be {self.num_classes} names, got {len(self.labels)}.')
    if self.weights is not None:
      check_weights(self.weights, self.num_clients, self.clients)

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
      {name: placed(x) for name, x in self.arrays.items()},
      placed(np.asarray(self.index, np.int32)),
      placed(np.asarray(self.offsets[:-1], np.int32)),
      placed(np.asarray(self.counts, np.int32)),
    )

  def host_population(self) -> Population:
    """Returns the whole population on the host; what is memory-mapped stays so."""
    offsets: Any = np.asarray(self.offsets[:-1])
    arrays: Any = self.arrays
    return Population(arrays, np.asarray(self.index), offsets, np.asarray(self.counts))  # type: ignore[arg-type]

  def label_counts(self) -> np.ndarray:
    """Returns the examples of each label that each client holds, [N, num_classes] int64.

    Raises:
      ValueError: the task is not classification.
    """
    labels = self.arrays['y']
    if not isinstance(self.task, Classification):
      raise ValueError(f'y must be one label an example, got shape {labels.shape!r}.')
    owner = np.repeat(np.arange(self.num_clients, dtype=np.int64), self.counts)
    cell = owner * self.num_classes + np.asarray(labels)[self.index]
    flat = np.bincount(cell, minlength=self.num_clients * self.num_classes)
    return flat.reshape(self.num_clients, self.num_classes)

  def shown(self) -> tuple[np.ndarray, list[str] | None]:
    """Returns (counts, names of the columns or None) of what a plot of the partition shows.

    These are `label_counts`, also of several labels an example; else how many examples each client
    has, [N, 1].
    """
    names = None if self.labels is None else [str(x) for x in self.labels]
    if isinstance(self.task, Classification):
      return self.label_counts(), names
    if isinstance(self.task, MultiLabel):
      hot = np.asarray(self.arrays['y'])[self.index].astype(np.int64)
      return np.add.reduceat(hot, self.offsets[:-1]), names
    what = 'sequences' if isinstance(self.task, NextToken) else 'examples'
    return np.asarray(self.counts, np.int64)[:, None], [what]

  def digest(self) -> str:
    """Returns the SHA-256 of the examples, who holds them, the test set and the labels' names."""
    state = hashlib.sha256()
    parts = [self.arrays, self.test, {'index': self.index, 'offsets': self.offsets}]
    for arrays in parts:
      for name, x in arrays.items():
        state.update(f'{name}|{x.dtype.str}|{x.shape}|'.encode())
        for part in _parts(x):
          state.update(part)
    state.update(repr((self.labels, self.task)).encode())
    return state.hexdigest()

  def equal_rows(self) -> int | None:
    """Returns how many stored examples equal an earlier one; None: they are memory-mapped."""
    if any(isinstance(x, np.memmap) for x in self.arrays.values()):
      return None
    seen: set[int] = set()
    for row in zip(*self.arrays.values(), strict=True):
      seen.add(hash(tuple(np.ascontiguousarray(x).tobytes() for x in row)))
    return len(self.arrays['y']) - len(seen)


def _parts(x: np.ndarray) -> Iterator[memoryview]:
  """Yields the bytes of an array; of a memory-mapped one few are in memory at a time."""
  if not isinstance(x, np.memmap):
    yield np.ascontiguousarray(x).data.cast('B') if x.size else memoryview(b'')
    return
  rows = max(1, _READ // max(1, x.nbytes // max(1, len(x))))
  for start in range(0, len(x), rows):
    yield np.ascontiguousarray(x[start : start + rows]).data.cast('B')
    forget(x)


def forget(x: np.ndarray) -> None:
  """Frees the memory of what was read of a memory-mapped array; it is read again when used."""
  held = getattr(x, '_mmap', None)
  if held is not None and hasattr(mmap, 'MADV_DONTNEED'):
    held.madvise(mmap.MADV_DONTNEED)


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Returns zeros that begin on a cache line.

  On a CPU `device_put` uses such memory without a copy, which is ten times as fast. Therefore what
  is put there needs a buffer of its own.
  """
  size = math.prod(shape) * dtype.itemsize
  raw = np.zeros(size + _LINE, np.uint8)
  begin = -raw.ctypes.data % _LINE
  return raw[begin : begin + size].view(dtype).reshape(shape)


def placed(x: Any) -> jax.Array:
  """Returns an array on the device, which later changes of a NumPy array leave as it is.

  `jnp.asarray` does the same by a program, which has to be compiled for every shape.
  """
  if isinstance(x, np.ndarray):
    own = aligned_zeros(x.shape, x.dtype)
    own[...] = x
    x = own
  there: jax.Array = jax.device_put(x)
  return there


def check_arrays(part: str, arrays: Arrays) -> None:
  """Raises `ValueError` unless there are 'x' and 'y', of one length."""
  if not {'x', 'y'} <= set(arrays):
    raise ValueError(f"{part} must hold 'x' and 'y', got {sorted(arrays)!r}.")
  lengths = {name: len(x) for name, x in arrays.items()}
  if len(set(lengths.values())) != 1 or max(lengths.values()) > _INT32_MAX:
    raise ValueError(f'{part} must be of one length below 2**31, got {lengths!r}.')


def check_weights(
  weights: np.ndarray, num_clients: int, names: Sequence[str] | None = None
) -> None:
  """Raises `ValueError` unless every client has a finite weight > 0."""
  if weights.shape != (num_clients,):
    raise ValueError(f'weights must be {num_clients}, one a client, got shape {weights.shape!r}.')
  bad = np.flatnonzero(~(np.isfinite(weights) & (weights > 0)))
  if len(bad):
    who = int(bad[0]) if names is None else repr(names[bad[0]])
    raise ValueError(f'weights must be finite and > 0, got {weights[bad[0]]:g} for client {who}.')


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
  task: LearningTask | str | None = None,
  weights: Any = None,
  shared: bool = False,
) -> FederatedData:
  """Returns the user's own arrays as a population.

  >>> data = from_arrays(np.zeros((4, 2), np.float32), [0, 1, 1, 2], [[0, 1, 2], [3]])
  >>> data.counts.tolist(), data.num_classes
  ([3, 1], 3)

  Args:
    x: [T, ...] inputs; uint8 is divided by 255 unless `preprocess` is given.
    y: labels [T, ...], as `labels.encode` takes them.
    partition: from `partition.partition(...)`, or one array of rows per client.
    test: inputs and labels of the test set; None: there is none.
    num_classes: number of classes; None: as many as the labels say.
    preprocess: jittable and hashable function, batch -> batch; None: see `preprocess.default_for`.
    clients: names of the clients.
    name: name of the data set.
    task: what a model learns, or its name; None: as `labels.encode` says.
    weights: [N] numbers > 0, how much each counts under the weighting 'given'.
    shared: whether lists of rows may hold a row twice.

  Raises:
    ValueError: arrays that do not fit each other or the task, labels that only the test set has,
      inputs that are not finite, or rows that do not exist or are in the lists twice.
  """
  x = _finite('x', x)
  test_x, test_y = (x[:0], None) if test is None else (_finite('test x', test[0]), test[1])
  found = encode(y, test_y, task, num_classes)
  if not isinstance(partition, Partition):
    partition = Partition.of([np.asarray(rows) for rows in partition])
    if not shared:
      _check_once(partition, clients)
  preprocess, arrays = preprocess or default_for(x), {'x': x, 'y': found.y}
  return FederatedData(
    name,
    arrays,
    partition.index,
    partition.offsets,
    {'x': test_x, 'y': found.test_y},
    found.num_classes,
    input_shape_of(preprocess, arrays),
    preprocess,
    clients,
    partition.unused_labels,
    task=found.task,
    labels=found.labels,
    weights=None if weights is None else np.asarray(weights, np.float32),
  )


def input_shape_of(preprocess: Callable[[Batch], Batch], arrays: Arrays) -> tuple[int, ...]:
  """Returns the shape of one preprocessed 'x', without computing one."""
  one = {k: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for k, x in arrays.items()}
  shape: tuple[int, ...] = jax.eval_shape(preprocess, one)['x'].shape[1:]
  return shape


def _finite(part: str, x: Any) -> np.ndarray:
  values: np.ndarray = np.asarray(x)
  if np.issubdtype(values.dtype, np.inexact) and not np.isfinite(values).all():
    raise ValueError(f'{part} must be finite, got NaN or infinity in it.')
  return values


def _check_once(partition: Partition, clients: tuple[str, ...] | None) -> None:
  """Raises `ValueError` if lists that a user gives hold a row twice."""
  order = np.argsort(partition.index, kind='stable')
  rows = partition.index[order]
  again = np.flatnonzero(rows[1:] == rows[:-1])
  if not len(again):
    return
  places = order[again[0] : again[0] + 2]
  who = (np.searchsorted(partition.offsets, places, side='right') - 1).tolist()
  names = [repr(clients[i]) if clients else str(i) for i in who]
  raise ValueError(
    f'partition must hold each row once, got row {int(rows[again[0]])} in the lists of client '
    f'{names[0]} and of client {names[1]}: shared = True allows it.'
  )
