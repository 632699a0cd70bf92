"""Any builder of TensorFlow Datasets, prepared as array_record, without TensorFlow."""

from typing import Any

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data import places, tfds
from fedjax_mem.data.labels import values
from fedjax_mem.data.own import _shared
from fedjax_mem.data.table import Table


def from_tfds(
  builder: Any,
  *,
  x: str | None = None,
  y: str | None = None,
  client: str | None = None,
  train: str = 'train',
  test: str | None = None,
  task: str | None = None,
  test_share: float = 0.2,
  test_seed: int = 0,
  data_dir: tfds.Folder = None,
) -> Table:
  """Returns the examples of a TFDS builder, read into memory.

  It is prepared first if it is not, in array_record files. A name that `fedjax-mem data prepare`
  takes is loaded without being read again by that name (`data.load`), for large data sets.

  >>> from_tfds('own_songs:Songs', y='moods', task='multi_label')
  Traceback (most recent call last):
    ...
  ValueError: builder must name a module that can be imported (is its folder ...

  Args:
    builder: a builder, its class, 'package.module:Class', or a name that TFDS knows.
    x: feature of the inputs, numbers of one shape; None: as the builder's supervised keys say.
    y: feature of the labels; None: as the builder's supervised keys say.
    client: feature that names the client of each example; None: there is none.
    train: split of the training examples.
    test: split of the test set; None: 'test' if there is one, else a share of `train`.
    task: what a model learns, or its name; None: classification, or the next token.
    test_share: that share of each client's examples, in [0, 1).
    test_seed: seed of the draw of that share.
    data_dir: folder of prepared data; None: as `data.places` says.

  Raises:
    ValueError: no such builder, split or feature (the nearest is named), a builder that cannot be
      prepared, or values that do not fit each other.
  """
  with tfds.quiet():
    made = _prepared(builder, data_dir)
    features, splits = made.info.features, list(made.info.splits)
    names = _names(made, x, y, client)
    validate.one_of(splits, train=train)
    test = test or ('test' if 'test' in splits else None)
    tested = _read(made, validate.one_of(splits, test=test), names) if test else None
    read = _read(made, train, names)
  known = getattr(features[names[1]], 'names', None)
  numbered = known is not None and list(known) != [str(i) for i in range(len(known))]
  return _shared.table_of(
    made.name,
    read,
    tested,
    test_share=test_share,
    test_seed=test_seed,
    task=task,
    what=f'feature {names[1]!r}',
    num_classes=getattr(features[names[1]], 'num_classes', None),
    labels=known if numbered else None,
  )


def _names(builder: Any, x: str | None, y: str | None, client: str | None) -> list[Any]:
  """Returns the features of the inputs, the labels and the clients; None: there are no clients."""
  supervised = builder.info.supervised_keys or (None, None)
  names = [x or supervised[0], y or supervised[1], client]
  for option, name in zip(('x', 'y', 'client'), names, strict=True):
    if name is None and option != 'client':
      raise ValueError(f'{option} must name a feature, for {builder.name!r} says none, got None.')
    if name is not None:
      validate.one_of(builder.info.features, **{option: name})
  return names


def _prepared(builder: Any, data_dir: tfds.Folder) -> Any:
  """Returns a builder whose data are on the disk."""
  made: Any = builder
  if isinstance(builder, str) and ':' in builder:
    made = validate.imported('builder', builder=builder)
  import tensorflow_datasets  # imported here: it is slow to import, and few runs need it

  root = places.data_folder(data_dir)
  if isinstance(made, str):
    return tfds.foreign(tensorflow_datasets, made, root, None)
  kind: Any = tensorflow_datasets.core.DatasetBuilder
  if isinstance(made, type) and issubclass(made, kind):
    made = made(data_dir=str(root), file_format='array_record')
  if not isinstance(made, kind):
    raise ValueError(f'builder must be a TFDS builder, got {builder!r}.')
  if not made.info.splits:
    try:
      tfds.download(tensorflow_datasets, made, root, None)
    except Exception as error:  # a builder of one's own raises anything
      raise ValueError(
        f'builder {made.name!r} must prepare its data, got {type(error).__name__}: '
        f'{tfds.first_line(error)}'
      ) from error
  return made


def _read(builder: Any, split: str, names: list[Any]) -> _shared.Rows:
  try:
    source = builder.as_data_source(split)
  except NotImplementedError as error:
    raise ValueError(
      f'{builder.data_dir} must hold array_record files, got {builder.info.file_format}; delete it '
      'or choose another data_dir.'
    ) from error
  found: list[list[Any]] = [[] for _ in names]
  for i in range(len(source)):
    example = source[i]
    for column, name in zip(found, names, strict=True):
      if name is not None:
        column.append(_plain(example[name]))
  if not found[0]:
    raise ValueError(f'split {split!r} of {builder.name!r} must hold examples, got none.')
  x = _shared.numbers(f'feature {names[0]!r}', _stacked(names[0], found[0]))
  y = values(f'feature {names[1]!r}', _stacked(names[1], found[1]))
  clients = None
  if names[2] is not None:
    clients = values(f'feature {names[2]!r}', np.asarray(found[2]))
  return _shared.Rows(x, y, clients)


def _plain(value: Any) -> Any:
  """Returns text as `str`, and all else as it is."""
  if isinstance(value, np.ndarray) and value.dtype == object and not value.ndim:
    value = value.item()
  return value.decode('utf-8', 'replace') if isinstance(value, bytes) else value


def _stacked(name: str, column: list[Any]) -> np.ndarray:
  shapes = [np.shape(x) for x in column]
  bad = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
  if bad is not None:
    raise ValueError(
      f'feature {name!r} must be of one shape, got {shapes[bad]!r} in example {bad}, after '
      f'{shapes[0]!r}.'
    )
  return np.stack([np.asarray(x) for x in column])
