"""What the readers of users' data share: the test set, the clients, and the table of both."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.labels import encode, shown, values
from fedjax_mem.data.preprocess import Batch, Tokens, default_for
from fedjax_mem.data.source import input_shape_of
from fedjax_mem.data.table import Table
from fedjax_mem.tasks import LearningTask, NextToken


class Rows(NamedTuple):
  """Examples as they are read.

  Attributes:
    x: [T, ...] numbers.
    y: [T, ...] labels, of any kind.
    clients: [T] what names the client of each example, or None.
    weights: [T] numbers, the weight of each example's client, or None.
    columns: name -> [T], what else is known of each example.
  """

  x: np.ndarray
  y: np.ndarray
  clients: np.ndarray | None = None
  weights: np.ndarray | None = None
  columns: Mapping[str, np.ndarray] | None = None

  def take(self, rows: np.ndarray) -> 'Rows':
    """Returns some of the examples."""

    def pick(x: np.ndarray | None) -> np.ndarray | None:
      return None if x is None else x[rows]

    columns = None if self.columns is None else {k: x[rows] for k, x in self.columns.items()}
    return Rows(self.x[rows], self.y[rows], pick(self.clients), pick(self.weights), columns)


def table_of(
  name: str,
  train: Rows,
  test: Rows | None,
  *,
  test_share: float,
  test_seed: int,
  task: LearningTask | str | None,
  what: str,
  num_classes: int | None = None,
  labels: Sequence[Any] | None = None,
  preprocess: Callable[[Batch], Batch] | None = None,
) -> Table:
  """Returns the table of examples and a test set.

  Args:
    name: name of the data set.
    train: the examples.
    test: the test set; None: a share of the examples, drawn.
    test_share: that share of each client's examples, in [0, 1).
    test_seed: seed of that draw.
    task: what a model learns, or its name.
    what: what holds the labels, for messages.
    num_classes: K of classes that are taken as they are; None: as the labels say.
    labels: what the user calls the K labels, where `encode` does not say.
    preprocess: batch -> batch; None: see `preprocess.default_for`.

  Raises:
    ValueError: labels that do not fit the task, a missing client, or a share that leaves nothing.
  """
  if test is None:
    train, test = split(train, test_share, test_seed)
  found = encode(train.y, test.y if len(test.y) else None, task, num_classes, what)
  x, test_x = train.x, test.x
  if isinstance(found.task, NextToken):
    preprocess = preprocess or Tokens()
    x, test_x = x.astype(np.int32), test_x.astype(np.int32)
  arrays = {'x': x, 'y': found.y}
  preprocess = preprocess or default_for(x)
  shape = input_shape_of(preprocess, arrays)
  ids, names, test_ids = _clients(train.clients, test.clients)
  return Table(
    name,
    arrays,
    {'x': test_x, 'y': found.test_y},
    found.num_classes,
    shape,
    preprocess,
    ids,
    names,
    test_ids,
    columns=train.columns,
    task=found.task,
    labels=found.labels if labels is None else tuple(labels),
    weights=train.weights,
  )


def split(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
  """Returns (training examples, test set): a share of each client's examples, drawn uniformly.

  Of n examples share × n are drawn, rounded half up, but never the last of a client, nor the last
  of a class: both stay in training. The order of the examples stays.

  Args:
    rows: the examples.
    share: in [0, 1); 0: the test set is empty.
    seed: seed of the draw.
  """
  validate.below_one(test_share=share)
  validate.seed(test_seed=seed)
  total = len(rows.y)
  order = np.random.default_rng(seed).permutation(total)
  owner = np.zeros(total, np.int64)
  if rows.clients is not None:
    owner = np.unique(rows.clients, return_inverse=True)[1]
  keep = np.zeros(total, bool)
  firsts = [owner]
  if rows.y.ndim == 1 and rows.y.dtype.kind in 'iubUS':
    firsts.append(rows.y)
  for of in firsts:  # the first of each in the drawn order
    keep[order[np.unique(of[order], return_index=True)[1]]] = True
  free = order[~keep[order]]
  wanted = np.floor(share * np.bincount(owner) + 0.5).astype(np.int64)
  # Position of each free example among those of its client, in the drawn order.
  by_client = np.argsort(owner[free], kind='stable')
  sizes = np.bincount(owner[free], minlength=len(wanted))
  place = np.empty(len(free), np.int64)
  place[by_client] = np.arange(len(free)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
  chosen = np.zeros(total, bool)
  chosen[free[place < wanted[owner[free]]]] = True
  return rows.take(~chosen), rows.take(chosen)


def _clients(
  train: np.ndarray | None, test: np.ndarray | None
) -> tuple[np.ndarray | None, tuple[str, ...] | None, np.ndarray | None]:
  """Returns the clients' ids [T], their names, and the ids of the test examples; -1: not known."""
  if train is None:
    return None, None, None
  names, ids = np.unique(train, return_inverse=True)
  said = tuple(map(str, names.tolist()))
  if test is None:
    return ids.astype(np.int32), said, None
  places = np.minimum(np.searchsorted(names, test), len(names) - 1)
  return ids.astype(np.int32), said, np.where(names[places] == test, places, -1).astype(np.int32)


def numbers(what: str, given: Any) -> np.ndarray:
  """Returns finite numbers in the dtype that they are stored in: float32, or small integers.

  Args:
    what: what they are, for messages.
    given: [T, ...] numbers.

  Raises:
    ValueError: a value that is missing, no number or not finite; the message names its row.
  """
  found = values(what, given)
  if found.dtype.kind not in 'iufb':
    row = next((i for i, x in enumerate(found) if not _is_number(x)), 0)
    raise ValueError(f'{what} must be numbers, got {found[row].item()!r} in row {row}.')
  if found.dtype.kind == 'f' and not np.isfinite(found).all():
    row = int(np.argwhere(~np.isfinite(found))[0][0])
    raise ValueError(f'{what} must be finite, got {shown(found[row])} in row {row}.')
  return found if found.dtype == np.uint8 else found.astype(np.float32)


def _is_number(x: Any) -> bool:
  try:
    float(x)
  except (TypeError, ValueError):
    return False
  return True


def existing(path: Any, what: str, folder: bool = False) -> Path:
  """Returns a path that is there, or raises `ValueError`."""
  found = Path(str(path)).expanduser()
  if not (found.is_dir() if folder else found.is_file()):
    kind = 'a folder' if folder else 'a file'
    raise ValueError(f'{what} must be {kind} that exists, got {str(path)!r}.')
  return found
