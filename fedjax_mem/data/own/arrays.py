"""Arrays of each client, of different sizes: in memory, or one .npz file a client."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_mem.data.labels import values
from fedjax_mem.data.own import _shared
from fedjax_mem.data.table import Table
from fedjax_mem.tasks import LearningTask

Pair = tuple[Any, Any]


def from_clients(
  clients: Mapping[str, Pair] | Sequence[Pair],
  *,
  task: LearningTask | str | None = None,
  test: Pair | None = None,
  test_share: float = 0.2,
  test_seed: int = 0,
  weights: Sequence[float] | None = None,
  num_classes: int | None = None,
  name: str = 'clients',
) -> Table:
  """Returns the table of clients' own arrays.

  >>> x, y = np.ones((5, 2)), ['a', 'b', 'a', 'b', 'a']
  >>> data = fm.data.distribute(from_clients({'north': (x, y), 'south': (x[:2], y[:2])}))
  >>> data.clients, data.counts.tolist(), data.labels
  (('north', 'south'), [4, 2], ('a', 'b'))

  Args:
    clients: inputs [n_k, ...] and labels [n_k, ...] of each client, by its name or in a list (then
      its name is its position).
    task: what a model learns, or its name; None: the next token if labels are [n, L], else
      classification.
    test: inputs and labels of the test set; None: a share of each client's examples.
    test_share: that share, in [0, 1).
    test_seed: seed of the draw of that share.
    weights: [N] numbers > 0, how much each client counts under the weighting 'given'.
    num_classes: K of classes that are taken as they are; None: as the labels say.
    name: name of the data set.

  Raises:
    ValueError: no client, one without examples or whose arrays do not fit each other or those of
      the first one, values that are not finite, or labels that do not fit the task.
  """
  named = clients if isinstance(clients, Mapping) else {str(i): x for i, x in enumerate(clients)}
  if not named:
    raise ValueError('clients must be at least one, got none.')
  pairs = {str(who): _pair(f'client {who!r}', pair) for who, pair in named.items()}
  _check_alike(pairs)
  sizes = [len(y) for _, y in pairs.values()]
  if weights is not None and len(weights) != len(pairs):
    raise ValueError(f'weights must be {len(pairs)}, one a client, got {len(weights)}.')
  train = _shared.Rows(
    np.concatenate([x for x, _ in pairs.values()]),
    np.concatenate([y for _, y in pairs.values()]),
    np.repeat(np.arange(len(pairs)), sizes),
    None if weights is None else np.repeat(np.asarray(weights, np.float64), sizes),
  )
  tested = None if test is None else _shared.Rows(*_pair('test', test))
  made = _shared.table_of(
    name,
    train,
    tested,
    test_share=test_share,
    test_seed=test_seed,
    task=task,
    what='y',
    num_classes=num_classes,
  )
  return made._replace(clients=tuple(pairs))


def _check_alike(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
  """Raises `ValueError` unless the clients' examples are of one shape and kind."""
  first, (like_x, like_y) = next(iter(pairs.items()))
  for who, (x, y) in pairs.items():
    shapes = x.shape[1:], y.shape[1:]
    if shapes != (like_x.shape[1:], like_y.shape[1:]) or _kind(y) != _kind(like_y):
      raise ValueError(
        f'client {who!r} must hold examples like those of client {first!r}, x [n, *'
        f'{like_x.shape[1:]!r}] and y {like_y.dtype} [n, *{like_y.shape[1:]!r}], '
        f'got {x.shape!r} and {y.dtype} {y.shape!r}.'
      )


def from_npz(
  path: Any,
  *,
  task: str | None = None,
  test: Any = None,
  test_share: float = 0.2,
  test_seed: int = 0,
  num_classes: int | None = None,
) -> Table:
  """Returns the table of a folder of .npz files, one a client, with arrays 'x' and 'y'.

  >>> import tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   np.savez(f'{folder}/north.npz', x=np.ones((5, 2)), y=[3, 4, 3, 4, 3])
  ...   table = from_npz(folder)
  >>> table.clients, table.labels
  (('north',), (3, 4))

  Args:
    path: the folder; a file's name without its ending is the client's.
    task: as in `from_clients`.
    test: an .npz file of the test set, outside of the folder; None: a share of each client's.
    test_share: as in `from_clients`.
    test_seed: as in `from_clients`.
    num_classes: as in `from_clients`.

  Raises:
    ValueError: as `from_clients`, a folder without such files, or a file that cannot be read.
  """
  folder = _shared.existing(path, 'path', folder=True)
  files = sorted(folder.glob('*.npz'))
  if not files:
    raise ValueError(f'{folder} must hold .npz files, one a client, got none.')
  tested = None if test is None else _read(_shared.existing(test, 'test'))
  return from_clients(
    {file.stem: _read(file) for file in files},
    task=task,
    test=tested,
    test_share=test_share,
    test_seed=test_seed,
    num_classes=num_classes,
    name=folder.name,
  )


def _read(file: Path) -> Pair:
  try:
    with np.load(file, allow_pickle=False) as arrays:
      return arrays['x'], arrays['y']
  except (OSError, ValueError, KeyError, AttributeError) as error:
    text = ' '.join(str(error).split())
    raise ValueError(f"{file} must be an .npz file with 'x' and 'y', got {text}.") from error


def _pair(who: str, pair: Any) -> tuple[np.ndarray, np.ndarray]:
  if not isinstance(pair, tuple | list) or len(pair) != 2:
    raise ValueError(f'{who} must be a pair of inputs and labels, got {type(pair).__name__}.')
  x, y = _shared.numbers(f'x of {who}', pair[0]), values(f'y of {who}', pair[1])
  if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
    raise ValueError(f'{who} must hold as many labels as inputs, got {y.shape!r} of {x.shape!r}.')
  if not len(x):
    raise ValueError(f'{who} must hold at least one example, got none.')
  return x, y


def _kind(y: np.ndarray) -> bool:
  """Returns whether labels are strings."""
  return y.dtype.kind in 'US'
