"""Data sets of TFDS by name, prepared as array_record without TensorFlow, and read without TFDS.

`prepare` runs a builder (one of `builders/`, or any of TFDS) or takes what TFDS has prepared
before, and then writes the flat arrays of `flat.py` beside its files. `load` only maps these.
Only `prepare` imports `tensorflow_datasets`.
"""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_mem.data import flat, places, text
from fedjax_mem.data.builders import idx, tff
from fedjax_mem.data.preprocess import image_shape

if TYPE_CHECKING:
  from fedjax_mem.data.table import Table

Folder = str | os.PathLike[str] | None
_BATCH = 1000
_RETRIES = 4
_STACKOVERFLOW_WORDS = 10_000


class Local(NamedTuple):
  """A builder of this package.

  Attributes:
    package: folder of the builder in `builders`.
    config: name of its TFDS config, or ''.
    holds: folder -> whether it holds the files that the builder converts.
    instructions: names and origin of these files, for error messages.
    known: folders where system packages install the files.
    text: name of the feature that holds text, or None.
    shared_clients: whether a client's name means the same client in both splits.
  """

  package: str
  config: str
  holds: Callable[[Path], bool]
  instructions: str
  known: tuple[str, ...] = ()
  text: str | None = None
  shared_clients: bool = True


def _has_idx(folder: Path) -> bool:
  return all(idx.find(folder, n) for stem in ('train', 't10k') for n in idx.names(stem))


def _natural(package: str, files: tff.Files, config: str = '', **options: Any) -> Local:
  return Local(package, config, files.found, files.instructions, **options)


BUILDERS: dict[str, Local] = {
  'fashion_mnist': Local(
    'fashion_mnist', '', _has_idx, idx.INSTRUCTIONS, ('/usr/share/datasets/fashion-mnist',)
  ),
  'fed_emnist': _natural('fed_emnist', tff.EMNIST, 'all'),
  'fed_emnist/digits': _natural('fed_emnist', tff.EMNIST_DIGITS, 'digits'),
  'fed_shakespeare': _natural('fed_shakespeare', tff.SHAKESPEARE, text='snippets'),
  'fed_cifar100': _natural('fed_cifar100', tff.CIFAR100, shared_clients=False),
  'fed_stackoverflow': _natural('fed_stackoverflow', tff.STACKOVERFLOW, text='tokens'),
}


def command(name: str, data_dir: Folder = None) -> str:
  """Returns the command that prepares a data set."""
  return f'fedjax-mem data prepare {name}' + (f' --data-dir {data_dir}' if data_dir else '')


def subfolder(name: str) -> str:
  """Returns the subfolder of the data folder for a data set: its name, with its TFDS config.

  Raises:
    ValueError: a name that leads out of the data folder: names come with configurations, whoever
      wrote them.
  """
  local = BUILDERS.get(name)
  path = PurePath(name)
  if path.is_absolute() or path.anchor or not path.parts or '..' in path.parts:
    raise ValueError(f'data must be the name of a data set, not a path, got {name!r}.')
  return name if local is None else '/'.join(filter(None, (local.package, local.config)))


def load(name: str, data_dir: Folder = None) -> 'Table':
  """Returns a prepared data set, memory-mapped.

  Raises:
    ValueError: it is not prepared, or its files are damaged; the message names the command to run.
  """
  root = places.data_folder(data_dir)
  home = flat.find(root, subfolder(name))
  if home is None:
    raise ValueError(
      f'data {name!r} must be prepared in {root}, got nothing there; '
      f'prepare it: {command(name, data_dir)}'
    )
  return flat.read(home, command(name, data_dir))


def manual_folder(name: str, data_dir: Folder = None, manual_dir: Folder = None) -> Path | None:
  """Returns the folder with the files that a builder of this package converts, or None."""
  local = BUILDERS[name]
  folders = places.manual_folders(name, data_dir, manual_dir, local.known)
  return places.first_with(folders, local.holds)


def prepare(name: str, data_dir: Folder = None, manual_dir: Folder = None) -> Path:
  """Prepares a data set, and returns the folder of its flat arrays.

  A data set that is prepared already is kept if it is whole; else its flat arrays are written
  again. The command line does the same.

  >>> prepare('fashion_mnist', '/srv/data')  # doctest: +SKIP
  PosixPath('/srv/data/fashion_mnist/1.0.0/flat')
  >>> command('fashion_mnist', '/srv/data')
  'fedjax-mem data prepare fashion_mnist --data-dir /srv/data'

  Args:
    name: a key of `BUILDERS`, or a data set of TFDS, such as `cifar10` or `emnist/byclass`.
    data_dir: folder of prepared data; None: as `places.data_folder` says.
    manual_dir: folder of downloaded source files; None: as `places.manual_folders` says.

  Raises:
    ValueError: source files that are missing or damaged, a data set that TFDS does not know or
      cannot download, features other than an input of fixed size and a label, or a folder that
      cannot be written.
  """
  with contextlib.suppress(ValueError):
    load(name, data_dir)
    home = flat.find(places.data_folder(data_dir), subfolder(name))
    if home is not None:
      return home / flat.FOLDER
  with quiet():
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
      tfds.disable_progress_bar()
    root = places.data_folder(data_dir)
    make = _local if name in BUILDERS else foreign
    builder = make(tfds, name, root, manual_dir)
    try:
      facts, blocks = _contents(name, builder)
      return flat.write(root / subfolder(name) / str(builder.version), facts, blocks)
    except RuntimeError as error:  # array_record raises it for damaged files.
      raise ValueError(
        f'{builder.data_dir} must hold whole array_record files, got {first_line(error)}; '
        f'delete it, then: {command(name, data_dir)}'
      ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps TFDS's messages off the standard output, which is for results."""
  with contextlib.redirect_stdout(io.StringIO()):
    yield


def _local(tfds: Any, name: str, root: Path, manual_dir: Folder) -> Any:
  local = BUILDERS[name]
  module = importlib.import_module(
    f'fedjax_mem.data.builders.{local.package}.{local.package}_dataset_builder'
  )
  options = {'config': local.config} if local.config else {}
  builder = module.Builder(data_dir=str(root), file_format='array_record', **options)
  if not builder.info.splits:
    if Path(builder.data_dir).exists():  # TFDS would take the data set for prepared
      raise ValueError(
        f'{builder.data_dir} must hold array_record files, got none; '
        f'delete it, then: {command(name)}'
      )
    folder = manual_folder(name, root, manual_dir)
    if folder is None:
      looked = places.manual_folders(name, root, manual_dir, local.known)
      raise ValueError(
        f'the files of {name!r} must be in one of {", ".join(map(str, looked))}, got none of them. '
        f'{local.instructions} Or say where: {command(name)} --manual-dir DIR'
      )
    try:
      download(tfds, builder, root, folder)
    except OSError as error:
      raise ValueError(f'{root} must be a writable folder with room in it, got {error}.') from error
  return builder


def download(tfds: Any, builder: Any, root: Path, manual_dir: Folder) -> None:
  """Prepares the data of a builder, in array_record files."""
  builder.download_and_prepare(
    download_dir=str(root / 'downloads'),
    download_config=tfds.download.DownloadConfig(manual_dir=manual_dir and str(manual_dir)),
    file_format='array_record',
  )


def foreign(tfds: Any, name: str, root: Path, manual_dir: Folder) -> Any:
  """Returns a TFDS builder with prepared data: in our folder, in TFDS's own, or prepared now."""
  try:
    # TFDS's ten retries, each after a longer pause, take minutes where there is no network.
    downloader: Any = importlib.import_module('tensorflow_datasets.core.download.downloader')
    downloader.MAX_RETRIES = _RETRIES
    stored = _stored(tfds, name, str(root)) or _stored(tfds, name, None)
    if stored is not None:
      return stored
    builder = tfds.builder(name, data_dir=str(root))
    download(tfds, builder, root, manual_dir)
    return builder
  except ImportError as error:
    raise ValueError(
      f"data {name!r} must be prepared with TensorFlow, which TFDS's own builder of it needs "
      f'(loading it needs none); install what is missing: {str(error).splitlines()[-1]}'
    ) from error
  except Exception as error:  # TFDS and its downloaders raise anything.
    raise ValueError(
      f'data {name!r} must be known to TFDS, and prepared already or there to be fetched, '
      f'got {type(error).__name__}: {first_line(error)}'
    ) from error


def _stored(tfds: Any, name: str, folder: str | None) -> Any:
  """Returns a builder whose data are in a folder (None: TFDS's default), or None."""
  try:
    builder = tfds.builder(name, data_dir=folder)
  except tfds.core.registered.DatasetNotFoundError:
    return None
  return builder if builder.info.splits else None


def first_line(error: Exception) -> str:
  """Returns the first line of an error that has a text, or ''."""
  return next((line for line in str(error).splitlines() if line.strip()), '').strip()


def _contents(name: str, builder: Any) -> tuple[flat.Facts, dict[str, Iterable[flat.Block]]]:
  """Returns the contents of a prepared builder: facts, and split -> blocks of examples."""
  splits = set(builder.info.splits)
  test = next((s for s in ('test', 'validation') if s in splits), None)
  if 'train' not in splits or test is None:
    raise ValueError(f"splits of {name!r} must hold 'train' and 'test', got {sorted(splits)!r}.")
  chosen = {'train': 'train', 'test': test}
  try:
    sources = {ours: builder.as_data_source(theirs) for ours, theirs in chosen.items()}
  except NotImplementedError as error:
    raise ValueError(
      f'{builder.data_dir} must hold array_record files, got {builder.info.file_format}; '
      f'delete it or choose another data_dir, then: {command(name)}'
    ) from error
  local = BUILDERS.get(name)
  facts, encode = (
    _texts(name, local, sources) if local and local.text else _inputs(name, builder.info)
  )
  if local:
    facts = facts._replace(shared_clients=local.shared_clients)
  natural = 'client_id' in builder.info.features
  return facts, {split: _blocks(source, encode, natural) for split, source in sources.items()}


Encode = Callable[[dict[str, Any]], tuple[np.ndarray, np.ndarray]]


def _inputs(name: str, info: Any) -> tuple[flat.Facts, Encode]:
  """Returns facts and encoder of a data set of fixed-size inputs with a label."""
  features = info.features
  keys = info.supervised_keys or ('image', 'label')
  if not all(isinstance(key, str) and key in features for key in keys[:2]):
    raise ValueError(f"features of {name!r} must hold 'image' and 'label', got {list(features)!r}.")
  x, y = features[keys[0]], features[keys[1]]
  numeric = np.dtype(x.np_dtype).kind in 'uif'
  if not numeric or None in x.shape or not getattr(y, 'num_classes', None):
    raise ValueError(
      f'{name!r} must have inputs of one size and a class for a label, '
      f'got {keys[0]}: {x.shape!r} {x.np_dtype} and {keys[1]}: {type(y).__name__}.'
    )
  divisor = 255.0 if np.dtype(x.np_dtype) == np.uint8 else 1.0
  facts = flat.Facts(name, int(y.num_classes), image_shape(tuple(x.shape)), divisor=divisor)

  def encode(example: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(example[keys[0]])[None], np.asarray([example[keys[1]]], np.int32)

  return facts, encode


def _texts(name: str, local: Local, sources: dict[str, Any]) -> tuple[flat.Facts, Encode]:
  """Returns facts and encoder of a data set of texts, for next-token prediction."""
  field = str(local.text)
  if name == 'fed_stackoverflow':
    train = (example[field] for example in _examples(sources['train']))
    encoder: Any = text.Words(text.most_frequent(train, _STACKOVERFLOW_WORDS))
  else:
    encoder = text.Characters()
  facts = flat.Facts(name, encoder.num_classes, (encoder.length,), 'tokens')

  def encode(example: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    ids = encoder.encode(example[field])
    return ids[:, :-1], ids[:, 1:]

  return facts, encode


def _examples(source: Any) -> Iterator[dict[str, Any]]:
  for begin in range(0, len(source), _BATCH):
    yield from source.__getitems__(range(begin, min(begin + _BATCH, len(source))))


def _blocks(source: Any, encode: Encode, natural: bool) -> Iterator[flat.Block]:
  xs: list[np.ndarray] = []
  ys: list[np.ndarray] = []
  clients: list[str] = []
  for i, example in enumerate(_examples(source), 1):
    x, y = encode(example)
    xs.append(x)
    ys.append(y)
    if natural:
      clients += [example['client_id'].decode()] * len(y)
    if i % _BATCH == 0 or i == len(source):
      yield flat.Block(np.concatenate(xs), np.concatenate(ys), clients if natural else None)
      xs, ys, clients = [], [], []
