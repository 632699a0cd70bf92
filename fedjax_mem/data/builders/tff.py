"""Reads the federated data sets that TensorFlow Federated publishes, in both of their forms.

HDF5: one file per split with a group `examples`; in it one group per client; in it one array per
feature, with examples along the first axis. SQLite (plain or .lzma): one file for all splits with a
table `examples` of columns `split_name`, `client_id` and `serialized_example_proto` (a
`tf.train.Example`). Examples are read client after client, clients in alphabetical order.
"""

import contextlib
import lzma
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Example = dict[str, Any]


class Files(NamedTuple):
  """The published files of one data set.

  Attributes:
    hdf5: the part of the file names before `_<split>.h5`.
    sqlite: name of the database, without .lzma.
    splits: our name of a split -> (its name in the HDF5 file's name, `split_name` in the database).
  """

  hdf5: str
  sqlite: str
  splits: dict[str, tuple[str, str]]

  @property
  def instructions(self) -> str:
    """Text for the user: which files are needed, and where they come from."""
    names = ', '.join(f'{self.hdf5}_{split}.h5' for split, _ in self.splits.values())
    return (
      f'Fetch what TensorFlow Federated publishes (tff.simulation.datasets): {self.sqlite}.lzma '
      f'(or unpacked: {self.sqlite}), or the HDF5 files {names}.'
    )

  def hdf5_files(self, folder: Path) -> dict[str, Path]:
    """Returns the HDF5 file of each split; they need not exist."""
    return {ours: folder / f'{self.hdf5}_{name}.h5' for ours, (name, _) in self.splits.items()}

  def database(self, folder: Path) -> Path | None:
    """Returns the database in a folder, the unpacked one if both are there, or None."""
    names = (self.sqlite, f'{self.sqlite}.lzma')
    return next((folder / n for n in names if (folder / n).is_file()), None)

  def found(self, folder: Path) -> bool:
    """Returns whether a folder holds the files in one of their forms."""
    paths = self.hdf5_files(folder).values()
    return self.database(folder) is not None or all(p.is_file() for p in paths)


_TRAIN_TEST = {'train': ('train', 'train'), 'test': ('test', 'test')}
EMNIST = Files(
  'fed_emnist',
  'emnist_all.sqlite',
  {'train': ('train', 'all_train'), 'test': ('test', 'all_test')},
)
EMNIST_DIGITS = Files(
  'fed_emnist_digitsonly',
  'emnist_all.sqlite',
  {'train': ('train', 'digits_only_train'), 'test': ('test', 'digits_only_test')},
)
SHAKESPEARE = Files('shakespeare', 'shakespeare.sqlite', _TRAIN_TEST)
CIFAR100 = Files('fed_cifar100', 'cifar100.sqlite', _TRAIN_TEST)
STACKOVERFLOW = Files(
  'stackoverflow',
  'stackoverflow.sqlite',
  {**_TRAIN_TEST, 'held_out': ('held_out', 'heldout')},
)


class Reader:
  """Reads one data set's files; a compressed database is unpacked once, for all splits.

  Args:
    folder: folder of the files.
    files: names of the files.
    scratch: folder in which a database may be unpacked; it is removed with the reader.

  Raises:
    ValueError: the files are missing or damaged.
  """

  def __init__(self, folder: Path, files: Files, scratch: Path):
    if not files.found(folder):
      raise ValueError(f'{folder} must hold the published files, got none. {files.instructions}')
    self._files, self._folder = files, folder
    self._database = files.database(folder)
    if self._database is not None and self._database.suffix == '.lzma':
      scratch.mkdir(parents=True, exist_ok=True)
      self._scratch = tempfile.TemporaryDirectory(dir=scratch)
      self._database = _unpack(self._database, Path(self._scratch.name) / files.sqlite)

  def examples(self, split: str) -> Iterator[tuple[str, Example]]:
    """Yields (client, example) of a split: text as bytes, numbers as arrays."""
    hdf5, sql = self._files.splits[split]
    if self._database is not None:
      return _from_sqlite(self._database, sql)
    return _from_hdf5(self._folder / f'{self._files.hdf5}_{hdf5}.h5')


def _unpack(packed: Path, path: Path) -> Path:
  try:
    with lzma.open(packed) as source, path.open('wb') as target:
      shutil.copyfileobj(source, target, 1 << 20)
  except (lzma.LZMAError, EOFError) as error:
    raise ValueError(
      f'{packed} must be a whole .lzma file, got {error}; fetch it again.'
    ) from error
  return path


def _from_hdf5(path: Path) -> Iterator[tuple[str, Example]]:
  try:
    import h5py
  except ImportError as error:
    raise ValueError(
      f"{path} must be read with h5py, which is not installed: pip install 'fedjax_mem[hdf5]'"
    ) from error
  try:
    with h5py.File(path, 'r') as file:
      clients = file['examples']
      for client in sorted(clients):
        columns = {name: column[()] for name, column in clients[client].items()}
        for i in range(len(next(iter(columns.values())))):
          yield client, {name: column[i] for name, column in columns.items()}
  except (OSError, KeyError, RuntimeError, StopIteration) as error:
    raise ValueError(
      f"{path} must be a whole HDF5 file with a group 'examples', got {error}; fetch it again."
    ) from error


def _from_sqlite(path: Path, split: str) -> Iterator[tuple[str, Example]]:
  from google.protobuf.message import DecodeError
  from tensorflow_datasets.proto import tf_example_pb2

  query = (
    'SELECT client_id, serialized_example_proto FROM examples WHERE split_name = ? '
    'ORDER BY client_id, rowid'
  )
  empty = True
  try:
    # Read-only: a database in a system folder must not be changed, and none must be created.
    with contextlib.closing(sqlite3.connect(f'{path.absolute().as_uri()}?mode=ro', uri=True)) as db:
      for client, blob in db.execute(query, (split,)):
        empty = False
        yield client, _parse(tf_example_pb2.Example.FromString(blob))
  except (sqlite3.Error, DecodeError) as error:
    raise ValueError(
      f"{path} must be a whole SQLite file with a table 'examples', got {error}; fetch it again."
    ) from error
  if empty:
    raise ValueError(f'{path} must hold examples of the split {split!r}, got none.')


def _parse(example: Any) -> Example:
  """Returns the features of a `tf.train.Example`: bytes (the first value), or arrays of numbers."""
  parsed: Example = {}
  for name, feature in example.features.feature.items():
    kind = feature.WhichOneof('kind')
    if kind == 'bytes_list':
      parsed[name] = feature.bytes_list.value[0]
    elif kind == 'int64_list':
      parsed[name] = np.array(feature.int64_list.value, np.int64)
    elif kind == 'float_list':
      parsed[name] = np.array(feature.float_list.value, np.float32)
  return parsed


def scalar(value: Any) -> int:
  """Returns an integer stored as a scalar or as an array of one."""
  return int(np.asarray(value).reshape(()))


def grey(pixels: Any) -> np.ndarray:
  """Returns EMNIST's pixels, multiples of 1/255 in [0, 1], as uint8 [28, 28, 1].

  Raises:
    ValueError: pixels outside [0, 1].
  """
  values = np.asarray(pixels, np.float32).reshape(28, 28, 1)
  if not (values.min() >= 0 and values.max() <= 1):
    raise ValueError(f'pixels must be in [0, 1], got {values.min()} to {values.max()}.')
  return np.rint(values * 255).astype(np.uint8)
