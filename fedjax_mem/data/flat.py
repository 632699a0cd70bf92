"""Flat arrays beside a prepared data set: written once, then memory-mapped in milliseconds.

The folder `flat` holds one .npy file per array, and `flat.json` with their shapes, dtypes and
checksums. It is written under another name and then renamed, so it is never incomplete. A folder
that does not match its `flat.json` is refused.
"""

import contextlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_mem.data.preprocess import Inputs, Tokens

if TYPE_CHECKING:
  from fedjax_mem.data.table import Table

# Tokens of format 1 lack the `oov` of an empty word (two spaces in a row, an empty text).
FORMATS = {'inputs': 1, 'tokens': 2}
FOLDER = 'flat'
_MANIFEST = 'flat.json'
_CLIENTS = 'clients.json'
_HEADER = 128
# Larger files are checked by size only: computing their checksums would make loading slow.
_SUMMED_BYTES = 256 << 20


class Block(NamedTuple):
  """Examples of one split: x [n, ...], y [n, ...] and, in a natural partition, their clients."""

  x: np.ndarray
  y: np.ndarray
  clients: list[str] | None = None


class Facts(NamedTuple):
  """Facts about a data set's arrays.

  Attributes:
    name: name of the data set.
    num_classes: number of classes; labels are in [0, num_classes).
    input_shape: shape of a preprocessed x, without the batch axis.
    kind: 'inputs' (numbers, divided by `divisor`) or 'tokens'.
    divisor: divisor of the inputs; see `Inputs`.
    shared_clients: whether a client's name means the same client in both splits.
  """

  name: str
  num_classes: int
  input_shape: tuple[int, ...]
  kind: str = 'inputs'
  divisor: float = 1.0
  shared_clients: bool = True


class _Column:
  """One .npy file, written block by block; the header is written last, with the final length."""

  def __init__(self, path: Path):
    self.path, self.rows, self.crc = path, 0, 0
    self.dtype: np.dtype | None = None
    self.shape: tuple[int, ...] = ()
    self._file = path.open('wb')
    self._file.write(b'\0' * _HEADER)

  def append(self, values: np.ndarray) -> None:
    values = np.ascontiguousarray(values)
    if self.dtype is None:
      self.dtype, self.shape = values.dtype, values.shape[1:]
    if values.dtype != self.dtype or values.shape[1:] != self.shape:
      raise ValueError(
        f'examples for {self.path.name} must be {self.dtype} {self.shape!r}, '
        f'got {values.dtype} {values.shape[1:]!r}.'
      )
    self.crc = zlib.crc32(values.data.cast('B') if values.size else b'', self.crc)
    self._file.write(values.tobytes())
    self.rows += len(values)

  def close(self) -> dict[str, Any]:
    """Writes the header, and returns the file's entry in the manifest."""
    if self.dtype is None:
      raise ValueError(f'a split must hold at least one example, got none for {self.path.name}.')
    shape = (self.rows, *self.shape)
    fields = f"{{'descr': {self.dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    body = fields.ljust(_HEADER - 11) + '\n'
    self._file.seek(0)
    self._file.write(b'\x93NUMPY\x01\x00' + len(body).to_bytes(2, 'little') + body.encode())
    self._file.flush()
    os.fsync(self._file.fileno())
    self._file.close()
    return {'shape': shape, 'dtype': self.dtype.str, 'crc32': self.crc}

  def abandon(self) -> None:
    self._file.close()


def write(home: Path, facts: Facts, splits: dict[str, Iterable[Block]]) -> Path:
  """Writes the flat arrays of a data set, and returns their folder.

  Args:
    home: folder of the data set; `flat` in it is replaced.
    facts: facts about the arrays.
    splits: 'train' and 'test' -> their blocks.

  Raises:
    ValueError: an empty split, examples of different shapes, labels out of range, or a folder that
      cannot be written.
  """
  draft = home / f'{FOLDER}.incomplete-{os.getpid()}'
  try:
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    files, names = {}, {}
    for split, blocks in splits.items():
      entries, names[split] = _write_split(draft, split, facts, blocks)
      files.update(entries)
    manifest = {
      'format': FORMATS[facts.kind],
      **facts._asdict(),
      'files': files,
      'clients': any(names.values()),
    }
    (draft / _CLIENTS).write_text(json.dumps(names))
    (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    return _publish(draft, home / FOLDER)
  except OSError as error:
    raise ValueError(f'{home} must be a writable folder with room in it, got {error}.') from error
  finally:
    shutil.rmtree(draft, ignore_errors=True)


def _write_split(
  folder: Path, split: str, facts: Facts, blocks: Iterable[Block]
) -> tuple[dict[str, Any], list[str]]:
  """Returns the manifest entries of a split's files, and the names of its clients."""
  columns = {part: _Column(folder / f'{split}_{part}.npy') for part in 'xy'}
  ids: dict[str, int] = {}
  try:
    for x, y, clients in blocks:
      if len(y) and (int(y.min()) < 0 or int(y.max()) >= facts.num_classes):
        raise ValueError(
          f'labels of {facts.name!r} must be in [0, {facts.num_classes}), '
          f'got {y.min()} to {y.max()}.'
        )
      columns['x'].append(x)
      columns['y'].append(y.astype(np.int32))
      if clients is not None:
        owner = columns.setdefault('client', _Column(folder / f'{split}_client.npy'))
        owner.append(np.array([ids.setdefault(c, len(ids)) for c in clients], np.int32))
    return {column.path.name: column.close() for column in columns.values()}, list(ids)
  finally:
    for column in columns.values():
      column.abandon()


def _publish(draft: Path, folder: Path) -> Path:
  old = folder.with_name(f'{folder.name}.old-{os.getpid()}')
  with contextlib.suppress(FileNotFoundError):
    folder.rename(old)
  draft.rename(folder)
  shutil.rmtree(old, ignore_errors=True)
  return folder


def check(home: Path, remedy: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Returns the manifest of a data set's flat arrays, and these, memory-mapped, by their files.

  Args:
    home: folder of the data set.
    remedy: command that writes the arrays again, for error messages.

  Raises:
    ValueError: a file is missing, incomplete or changed; the message names `remedy`.
  """
  folder = home / FOLDER
  with _refusal(folder, remedy):
    manifest = json.loads((folder / _MANIFEST).read_text())
    if manifest['format'] != FORMATS[manifest['kind']]:
      raise ValueError(f'format {manifest["format"]!r} is not {FORMATS[manifest["kind"]]}')
    arrays = {name: _map(folder / name, entry) for name, entry in manifest['files'].items()}
    return manifest, arrays


def read(home: Path, remedy: str) -> 'Table':
  """Returns the table of a data set's flat arrays, memory-mapped.

  Args:
    home: folder of the data set.
    remedy: command that writes the arrays again, for error messages.

  Raises:
    ValueError: a file is missing, incomplete or changed; the message names `remedy`.
  """
  folder = home / FOLDER
  manifest, arrays = check(home, remedy)
  from fedjax_mem.data.table import Table  # here: a list of data sets needs none

  with _refusal(folder, remedy):
    names = json.loads((folder / _CLIENTS).read_text())
    inputs = Inputs(tuple(manifest['input_shape']), float(manifest['divisor']))
    table = Table(
      name=manifest['name'],
      arrays={'x': arrays['train_x.npy'], 'y': arrays['train_y.npy']},
      test={'x': arrays['test_x.npy'], 'y': arrays['test_y.npy']},
      num_classes=manifest['num_classes'],
      input_shape=tuple(manifest['input_shape']),
      preprocess=Tokens() if manifest['kind'] == 'tokens' else inputs,
    )
    if not manifest['clients']:
      return table
    position = {name: i for i, name in enumerate(names['train'])}
    if not manifest['shared_clients']:
      position = {}
    tested = np.array([position.get(name, -1) for name in names['test']], np.int32)
    return table._replace(
      client_ids=np.asarray(arrays['train_client.npy']),
      clients=tuple(names['train']),
      test_client_ids=tested[arrays['test_client.npy']],
    )


@contextlib.contextmanager
def _refusal(folder: Path, remedy: str) -> Iterator[None]:
  try:
    yield
  except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
    raise ValueError(
      f'{folder} must be whole, got {type(error).__name__}: {error}; write it anew: {remedy}'
    ) from error


def _map(path: Path, entry: dict[str, Any]) -> np.ndarray:
  shape, dtype = tuple(entry['shape']), np.dtype(entry['dtype'])
  size, wanted = path.stat().st_size, _HEADER + math.prod(shape) * dtype.itemsize
  if size != wanted:
    raise ValueError(f'{path.name} has {size} bytes of {wanted}')
  array: np.ndarray = np.load(path, mmap_mode='r', allow_pickle=False)
  if array.shape != shape or array.dtype != dtype:
    raise ValueError(f'{path.name} holds {array.dtype} {array.shape!r}, not {dtype} {shape!r}')
  if array.nbytes <= _SUMMED_BYTES and zlib.crc32(array.data.cast('B')) != entry['crc32']:
    raise ValueError(f'{path.name} does not have its checksum')
  return array


def find(root: Path, name: str) -> Path | None:
  """Returns the folder root/name/<highest version> with flat arrays, sound or not, or None."""
  homes = [p.parent for p in (root / name).glob(f'*/{FOLDER}') if p.is_dir()]
  return max(homes, key=_version, default=None)


def _version(home: Path) -> tuple[int, ...]:
  parts = home.name.split('.')
  return tuple(int(p) if p.isdecimal() else -1 for p in parts)
