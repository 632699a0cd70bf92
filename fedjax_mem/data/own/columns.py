"""Tables with named columns: pandas, pyarrow or plain arrays; CSV and Parquet files."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.labels import values
from fedjax_mem.data.own import _shared
from fedjax_mem.data.table import Table
from fedjax_mem.tasks import LearningTask

Columns = dict[str, Any]


def from_table(
  table: Any,
  target: str | Sequence[str],
  *,
  client: str | None = None,
  features: Sequence[str] | None = None,
  weight: str | None = None,
  task: LearningTask | str | None = None,
  test: Any = None,
  test_share: float = 0.2,
  test_seed: int = 0,
  name: str = 'table',
) -> Table:
  """Returns the examples of a table, a row each.

  >>> shops = {'shop': ['a', 'a', 'b', 'b'], 'size': [1.0, 2.0, 3.0, 4.0], 'price': [2, 4, 6, 8]}
  >>> table = from_table(shops, 'price', client='shop', task='regression', test_share=0)
  >>> data = fm.data.distribute(table)
  >>> data.clients, data.arrays['y'].tolist()
  (('a', 'b'), [2.0, 4.0, 6.0, 8.0])

  Args:
    table: a pandas DataFrame, a pyarrow Table, or a mapping name -> column.
    target: column of the labels; several columns: of numbers for 'regression', of 0 and 1 for
      'multi_label'.
    client: column that names the client of each row; None: a partition gives the rows to clients.
    features: columns of numbers that the model sees; None: all but `target`, `client` and `weight`.
    weight: column of how much the row's client counts under the weighting 'given', > 0, the same
      in all its rows.
    task: what a model learns, or its name; None: classification.
    test: another such table, the test set; None: a share of each client's rows, or of all.
    test_share: that share, in [0, 1).
    test_seed: seed of the draw of that share.
    name: name of the data set.

  Raises:
    ValueError: a column that is not there (the nearest is named), a value that is missing or does
      not fit (its column and row are named, rows from 0), or labels that do not fit the task.
  """
  several, targets = not isinstance(target, str), _targets(target, task)
  train = _rows(_columns(table), targets, several, client, features, weight, '')
  if test is not None:
    test = _rows(_columns(test), targets, several, client, features, None, 'test ')
    if test.x.shape[1:] != train.x.shape[1:]:
      raise ValueError(
        f'the test table must have the {train.x.shape[1]} features of the other, '
        f'got {test.x.shape[1]}.'
      )
  return _shared.table_of(
    name,
    train,
    test,
    test_share=test_share,
    test_seed=test_seed,
    task=task or 'classification',
    what=f'columns {targets!r}' if several else f'column {target!r}',
    labels=targets if several else None,
  )


def _targets(target: str | Sequence[str], task: LearningTask | str | None) -> list[str]:
  """Returns the columns of the labels."""
  if isinstance(target, str):
    return [target]
  targets = [str(x) for x in target]
  if not targets or task is None:
    raise ValueError(
      "target must be a column, or several with the task 'regression' or 'multi_label', got "
      f'{targets!r} and the task {task!r}.'
    )
  return targets


def from_csv(
  path: Any,
  target: str | Sequence[str],
  *,
  client: str | None = None,
  features: Sequence[str] | None = None,
  weight: str | None = None,
  task: str | None = None,
  test: Any = None,
  test_share: float = 0.2,
  test_seed: int = 0,
) -> Table:
  r"""Returns the examples of a CSV file whose first line names the columns; UTF-8, commas.

  A column of numbers only is of numbers; an empty field is a missing value.

  >>> import pathlib, tempfile
  >>> with tempfile.TemporaryDirectory() as folder:
  ...   path = pathlib.Path(folder, 'birds.csv')
  ...   _ = path.write_text('size,kind\n1.5,wren\n2.5,robin\n')
  ...   table = from_csv(path, 'kind', test_share=0)
  >>> table.arrays['x'].tolist(), table.labels
  ([[1.5], [2.5]], ('robin', 'wren'))

  Args:
    path: the file.
    target: as in `from_table`.
    client: as in `from_table`.
    features: as in `from_table`.
    weight: as in `from_table`.
    task: as in `from_table`.
    test: another such file, the test set; None: a share of each client's rows, or of all.
    test_share: as in `from_table`.
    test_seed: as in `from_table`.

  Raises:
    ValueError: as `from_table`, or a file that is missing or no table.
  """
  file = _shared.existing(path, 'path')
  return from_table(
    _csv(file),
    target,
    client=client,
    features=features,
    weight=weight,
    task=task,
    test=None if test is None else _csv(_shared.existing(test, 'test')),
    test_share=test_share,
    test_seed=test_seed,
    name=file.stem,
  )


def from_parquet(
  path: Any,
  target: str | Sequence[str],
  *,
  client: str | None = None,
  features: Sequence[str] | None = None,
  weight: str | None = None,
  task: str | None = None,
  test: Any = None,
  test_share: float = 0.2,
  test_seed: int = 0,
) -> Table:
  """Returns the examples of a Parquet file, by pyarrow; the arguments are those of `from_csv`.

  >>> from_parquet('birds.parquet', 'kind', client='wood')  # doctest: +SKIP

  Raises:
    ValueError: as `from_csv`, or pyarrow is missing.
  """
  file = _shared.existing(path, 'path')
  return from_table(
    _parquet(file),
    target,
    client=client,
    features=features,
    weight=weight,
    task=task,
    test=None if test is None else _parquet(_shared.existing(test, 'test')),
    test_share=test_share,
    test_seed=test_seed,
    name=file.stem,
  )


def _csv(file: Path) -> Columns:
  try:
    with file.open(newline='', encoding='utf-8-sig') as lines:
      head, *rows = csv.reader(lines, strict=True)
  except (OSError, ValueError, csv.Error) as error:
    raise ValueError(f'{file} must be a CSV file with a line of names, got {error}.') from error
  rows = [row for row in rows if row]  # blank lines
  for number, row in enumerate(rows):
    if len(row) != len(head):
      raise ValueError(
        f'{file} must have {len(head)} fields in every row, got {len(row)} in row {number}.'
      )
  if len(set(head)) != len(head):
    twice = next(x for i, x in enumerate(head) if x in head[:i])
    raise ValueError(f'{file} must name each column once, got {twice!r} twice.')
  return {name: _typed([row[i] for row in rows]) for i, name in enumerate(head)}


def _typed(column: list[str]) -> np.ndarray:
  """Returns a column of text as integers or floats if all of it is, '' being missing."""
  for kind in (int, float):
    try:
      found = [None if x == '' else kind(x) for x in column]
    except ValueError:
      continue
    some_missing = None in found
    if kind is int and not some_missing and all(abs(x or 0) < 2**63 for x in found):
      return np.asarray(found, np.int64)
    return np.asarray(found, object if some_missing else np.float64)
  return np.asarray([x or None for x in column], object)


def _parquet(file: Path) -> Columns:
  try:
    from pyarrow import parquet  # imported here: it is an extra
  except ImportError as error:
    raise ValueError(
      f"{file} must be read by pyarrow, which is missing: pip install 'fedjax_mem[tables]'."
    ) from error
  try:
    return _columns(parquet.read_table(file))
  except (OSError, ValueError) as error:
    raise ValueError(f'{file} must be a Parquet file, got {error}.') from error


def _columns(table: Any) -> Columns:
  """Returns the columns of a table, without importing what made it."""
  if isinstance(table, Mapping):
    return {str(name): column for name, column in table.items()}
  if hasattr(table, 'column_names'):  # pyarrow: to_pylist keeps strings and what is missing
    return {name: _arrow(table.column(name)) for name in table.column_names}
  if hasattr(table, 'columns') and hasattr(table, 'to_numpy'):
    if not table.columns.is_unique:
      raise ValueError('table must name each column once, got names that repeat.')
    return {str(name): table[name].to_numpy() for name in table.columns}
  raise ValueError(
    'table must be a pandas DataFrame, a pyarrow Table or a mapping of columns, got '
    f'{type(table).__name__}.'
  )


def _arrow(column: Any) -> Any:
  return column.to_pylist() if column.null_count else column.to_numpy()


def _rows(
  columns: Columns,
  targets: list[str],
  several: bool,
  client: str | None,
  features: Sequence[str] | None,
  weight: str | None,
  part: str,
) -> _shared.Rows:
  """Returns the examples of a table; `part` is '' or 'test ', for messages."""
  named = [('target', x) for x in targets] + [('client', client), ('weight', weight)]
  special = {x for _, x in named if x is not None}
  if features is None:
    features = [x for x in columns if x not in special]
  for option, x in [*named, *(('features', x) for x in features)]:
    if x is not None:
      validate.one_of(columns, **{f'{part}{option}': x})
  if not features:
    raise ValueError('features must be at least one column of the table, got none.')
  lengths = {name: len(x) for name, x in columns.items()}
  if not any(lengths.values()):
    raise ValueError(
      f'the {part}table must have at least one row, got columns {list(columns)} only.'
    )
  if len(set(lengths.values())) != 1:
    raise ValueError(f'{part}columns must be of one length, got {lengths!r}.')
  found = [_shared.numbers(f'{part}column {x!r}', columns[x]) for x in features]
  labels = [values(f'{part}column {x!r}', columns[x]) for x in targets]
  return _shared.Rows(
    np.stack(found, 1),
    np.stack(labels, 1) if several else labels[0],
    None if client is None else values(f'{part}column {client!r}', columns[client]),
    None if weight is None else _weights(weight, columns[weight]),
    {name: np.asarray(x) for name, x in columns.items()},
  )


def _weights(name: str, column: Any) -> np.ndarray:
  found = _shared.numbers(f'column {name!r}', column)
  bad = np.flatnonzero(found <= 0)
  if len(bad):
    row = int(bad[0])
    raise ValueError(f'column {name!r} must be weights > 0, got {found[row]:g} in row {row}.')
  return found
