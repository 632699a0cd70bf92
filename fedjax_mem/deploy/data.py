"""A client's own examples, checked against what the server says that a job expects of them.

The server sends `Expected`, a description that names nobody's examples. From it and the
configuration a client builds the model and the layers, with or without the configured data set.
"""

import dataclasses
import inspect
import json
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_mem.config import build, registry
from fedjax_mem.config.load import Config
from fedjax_mem.core import Noises, Round, Shape, validate
from fedjax_mem.data.preprocess import Batch, Inputs, Tokens
from fedjax_mem.data.source import Arrays, FederatedData
from fedjax_mem.models.base import Model
from fedjax_mem.stages.select import SAMPLERS
from fedjax_mem.tasks import Classification, NextToken

LABELS = ('y', 'label')  # names of the column of labels in a table
_RANK, _MOST = 8, 2**31 - 1
_DTYPES = tuple(np.dtype(x).name for x in 'BHILbhilefd')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expected:
  """What a job expects of every client's examples; public.

  Attributes:
    x_shape: shape of a stored input, without the axis of examples.
    x_dtype: name of its dtype.
    y_shape: shape of a label: (), or (L,) for tokens.
    num_classes: labels are in [0, num_classes).
    input_shape: shape of an input as the model gets it.
    preprocess: stored batch -> the model's batch; None: it is a function of the configured data
      set, which a client has to load itself.
    num_clients: N, clients of the population.
    most: examples of the largest client in the configured data.
    equal: whether all clients have equally many there.
  """

  x_shape: tuple[int, ...]
  x_dtype: str
  y_shape: tuple[int, ...]
  num_classes: int
  input_shape: tuple[int, ...]
  preprocess: Inputs | Tokens | None
  num_clients: int
  most: int
  equal: bool

  def __post_init__(self) -> None:
    """Raises `ValueError` for what describes no examples: it comes from the server."""
    for name in ('x_shape', 'y_shape', 'input_shape'):
      _shape(name, getattr(self, name))
    if self.x_dtype not in _DTYPES:
      raise ValueError(f'x_dtype must be one of {_DTYPES!r}, got {self.x_dtype!r}.')
    for name in ('num_classes', 'num_clients', 'most'):
      validate.integer(at_most=_MOST, **{name: getattr(self, name)})
    validate.boolean(equal=self.equal)
    if self.preprocess is not None:
      validate.positive(divisor=getattr(self.preprocess, 'divisor', 1.0))
      shape = getattr(self.preprocess, 'shape', self.x_shape)
      if shape != self.input_shape or math.prod(shape) != math.prod(self.x_shape):
        raise ValueError(
          f'input_shape must be what {self.preprocess!r} makes of {self.x_shape!r}, '
          f'got {self.input_shape!r}.'
        )

  @classmethod
  def of(cls, data: FederatedData) -> 'Expected':
    """Returns the description of a population, for its clients.

    Raises:
      ValueError: arrays other than 'x' and 'y', or of a dtype that is never stored; or a task that
        a client cannot tell from the shape of the labels.
    """
    if data.task not in (Classification(), NextToken()):
      raise ValueError(
        f'the task of a job must be classification, or the next token without padding of its own, '
        f'got {data.task!r}: others run in simulations.'
      )
    if set(data.arrays) != {'x', 'y'}:
      raise ValueError(f"the data of a job must be 'x' and 'y', got {sorted(data.arrays)!r}.")
    x, y, counts = data.arrays['x'], data.arrays['y'], data.counts
    known = type(data.preprocess) in (Inputs, Tokens)
    return cls(
      x_shape=x.shape[1:],
      x_dtype=x.dtype.name,
      y_shape=y.shape[1:],
      num_classes=int(data.num_classes),
      input_shape=tuple(int(n) for n in data.input_shape),
      preprocess=data.preprocess if known else None,  # type: ignore[arg-type]
      num_clients=data.num_clients,
      most=int(counts.max()),
      equal=bool((counts == counts[0]).all()),
    )

  def to_json(self) -> str:
    """Returns the description as JSON."""
    kind = type(self.preprocess).__name__ if self.preprocess else None
    return json.dumps({**dataclasses.asdict(self), 'kind': kind})

  @classmethod
  def from_json(cls, text: str | bytes) -> 'Expected':
    """Returns the description that `to_json` wrote; `ValueError` for anything else."""
    kinds: dict[str | None, Any] = {'Inputs': Inputs, 'Tokens': Tokens, None: lambda: None}
    try:
      fields = json.loads(text)
      kind, given = kinds[fields.pop('kind')], fields.pop('preprocess') or {}
      return cls(**_tuples(fields), preprocess=kind(**_tuples(given)))
    except (TypeError, KeyError, AttributeError, ValueError) as error:
      raise ValueError(
        f'the description of the data must be one of this version, got {error}.'
      ) from error

  @property
  def shape(self) -> Shape:
    """Static facts about the configured population, as a round is planned with."""
    return Shape(self.num_clients, self.most, self.equal)

  @property
  def words(self) -> str:
    """What examples must be, for messages."""
    x, y = (', '.join(map(str, ('n', *shape))) for shape in (self.x_shape, self.y_shape))
    return f'x [{x}] {self.x_dtype} and y [{y}] integers in 0 … {self.num_classes - 1}'


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a table of JSON with tuples for its arrays."""
  return {key: tuple(x) if isinstance(x, list) else x for key, x in fields.items()}


def _shape(name: str, value: Any) -> None:
  if not isinstance(value, tuple) or len(value) > _RANK:
    raise ValueError(f'{name} must be a tuple of at most {_RANK} sizes, got {value!r}.')
  for size in value:
    validate.integer(at_most=_MOST, **{name: size})
  if math.prod(value) > _MOST:
    raise ValueError(f'{name} must be of less than 2**31 values, got {value!r}.')


def own(path: str | Path, expected: Expected) -> Arrays:
  """Returns the examples in a file or folder of the client, as the engine takes them.

  Args:
    path: an .npz file with 'x' and 'y', a folder with x.npy and y.npy, or a table with a header
      (.csv, .parquet): the column 'y' or 'label' has the labels, the others in order the inputs.
    expected: by the server.

  Raises:
    ValueError: there is nothing of the kind, or it is not what is expected; see `fits`.
  """
  path = Path(path)
  try:
    if path.is_dir():
      read = _folder(path)
    elif path.suffix == '.npz':
      with np.load(path, allow_pickle=False) as file:
        read = {name: file[name] for name in ('x', 'y')}
    elif path.suffix in ('.csv', '.parquet'):
      read = _table(path, expected)
    else:
      raise ValueError('another kind of file, or nothing')
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'--data must be an .npz file with x and y, a folder with x.npy and y.npy, or a .csv or '
      f'.parquet table with a column y, got {str(path)!r}: {" ".join(str(error).split())}.'
    ) from error
  return fits(read, expected, str(path))


def _folder(path: Path) -> Arrays:
  return {
    name: np.load(path / f'{name}.npy', mmap_mode='r', allow_pickle=False) for name in ('x', 'y')
  }


def _table(path: Path, expected: Expected) -> Arrays:
  """Returns the inputs and labels in the columns of a table; rows of images are flat there."""
  # Imported here: only who has a table needs it.
  from pyarrow import csv, parquet

  table = csv.read_csv(path) if path.suffix == '.csv' else parquet.read_table(path)
  label = next((name for name in LABELS if name in table.column_names), None)
  if label is None:
    raise ValueError(f'no column y or label among {table.column_names[:8]!r}')
  columns = {}
  for name in table.column_names:
    columns[name] = table[name].to_numpy()
    if table[name].null_count or columns[name].dtype.kind not in 'uif':
      raise ValueError(f'column {name!r} has an empty cell, or what is no number')
  y = columns.pop(label)
  x = np.stack(list(columns.values()), 1) if columns else np.zeros((len(y), 0))
  if np.dtype(expected.x_dtype).kind == 'f':
    x = x.astype(np.float64)  # a table writes 1.0 as 1
  if x.shape[1] == math.prod(expected.x_shape):
    x = x.reshape(len(x), *expected.x_shape)
  return {'x': x, 'y': y}


def fits(arrays: Mapping[str, np.ndarray], expected: Expected, where: str) -> Arrays:
  """Returns a client's examples as they are stored: 'x' [n, *x_shape], and 'y' in int32.

  No value changes but by rounding to float32: integers are expected where integers are stored, and
  floats where floats are.

  Args:
    arrays: 'x' and 'y'.
    expected: what they must be.
    where: their place, for messages.

  Raises:
    ValueError: they are of other shapes, dtypes or labels, are not finite, or are none; the
      message names both sides.
  """
  x, y = arrays['x'], arrays['y']
  got = f'x {list(x.shape)!r} {x.dtype} and y {list(y.shape)!r} {y.dtype}'
  stored = np.dtype(expected.x_dtype)
  if x.shape[1:] != expected.x_shape or y.shape[1:] != expected.y_shape or not x.ndim or not y.ndim:
    wrong = got
  elif len(x) != len(y) or not 1 <= len(x) <= _MOST:
    wrong = f'{got}: at least one example, and as many labels'
  elif not _whole(y) or y.min() < 0 or y.max() >= expected.num_classes:
    wrong = f'{got} in {y.min()} … {y.max()}'
  elif x.size and stored.kind in 'ui' and not _in_range(x, stored):
    wrong = f'{got}, x in {x.min()} … {x.max()}'
  elif stored.kind == 'f' and x.dtype.kind != 'f':
    wrong = got
  else:
    with np.errstate(over='ignore'):  # what float32 has no room for is infinite
      made = {'x': np.asarray(x, stored), 'y': np.asarray(y, np.int32)}
    if np.isfinite(made['x']).all():
      return made
    wrong = f'{got} with NaN or infinity'
  raise ValueError(f'the data in {where} must be {expected.words}, got {wrong}.')


def _whole(x: np.ndarray) -> bool:
  """Returns whether all values are integers, in whatever dtype of numbers."""
  if x.dtype.kind == 'f':
    return bool(np.isfinite(x).all() and (x == np.floor(x)).all())
  return x.dtype.kind in 'ui'


def _in_range(x: np.ndarray, stored: np.dtype) -> bool:
  limits = np.iinfo(stored)
  return _whole(x) and limits.min <= x.min() and x.max() <= limits.max


def part_of(data: FederatedData, client: int, expected: Expected) -> Arrays:
  """Returns a client's part of the configured data.

  Args:
    data: the population, as this machine has it.
    client: its id, in [0, N).
    expected: by the server, from the data as it has them.

  Raises:
    ValueError: no such client, or the two sides have different data.
  """
  validate.integer(at_least=0, at_most=data.num_clients - 1, client=client)
  here = dataclasses.asdict(Expected.of(data))
  for name, value in dataclasses.asdict(expected).items():
    if here[name] != value:
      raise ValueError(
        f'the configured data must be the same on the server and here, got {name} {value!r} there '
        f'and {here[name]!r} here: prepare it anew on both.'
      )
  rows = data.rows(client)
  return {name: np.asarray(x[rows]) for name, x in data.arrays.items()}


class ClientParts(NamedTuple):
  """What a client builds of a job.

  Attributes:
    model: the model.
    layers: the layers of a round; their client sides are those of the server's.
    preprocess: batch of stored arrays -> batch of model inputs.
  """

  model: Model
  layers: Round
  preprocess: Callable[[Batch], Batch]


def parts_of(config: Config, expected: Expected, data_dir: str | None = None) -> ClientParts:
  """Returns what a client runs of a job, without the configured data set where that can be.

  Call it under `validate.only_from`: names in the configuration are built. Only a data set with a
  preprocessing function of its own is loaded. Select sides, which the server runs, get no sizes and
  no validation split here.

  Args:
    config: of the job.
    expected: what the server says of its data.
    data_dir: where this machine has prepared data sets; None: the default place.

  Raises:
    ValueError: parts that do not fit each other, or names that are not allowed.
  """
  preprocess = expected.preprocess or build.load_data(config, data_dir).preprocess
  data = _stand_in(expected, preprocess)
  model = build.build_model(config, data)
  return ClientParts(model, build.build_layers(config, model, data.num_clients, data), preprocess)


def _stand_in(expected: Expected, preprocess: Callable[[Batch], Batch]) -> FederatedData:
  """Returns a population of that description, in which all clients hold the same zeros."""
  zeros = {
    'x': np.zeros((1, *expected.x_shape), expected.x_dtype),
    'y': np.zeros((1, *expected.y_shape), np.int32),
  }
  return FederatedData(
    'expected',
    zeros,
    np.zeros(expected.num_clients, np.int32),
    np.arange(expected.num_clients + 1, dtype=np.int64),
    zeros,
    expected.num_classes,
    expected.input_shape,
    preprocess,
    validation=zeros,
  )


def check_counts(config: Config, layers: Round, count: int, stated: int, most: int) -> None:
  """Raises where a job relies on the configured number of examples, and a client has another.

  Epsilon of noise by example is that of the largest client in the configured data. The virtual
  clock, and samplers that take sizes, draw by the configured numbers.

  Args:
    config: of the job.
    layers: of its round.
    count: examples that the client has.
    stated: examples of this client in the configured data.
    most: examples of the largest client there.

  Raises:
    ValueError: a number that breaks the accounting, or a draw by another number.
  """
  for layer, _, noise in layers.having(Noises):
    if noise.unit == 'example' and count > most:
      raise ValueError(
        f'the data must hold at most {most} examples, as the largest client for which '
        f'{layer.name!r} is accounted, got {count}.'
      )
  section = config.selection
  sampler = registry.factory('selection.name', section.name, SAMPLERS)
  by = 'selection.clock' if section.clock else f'the sampler {section.name!r}'
  if (section.clock or 'sizes' in inspect.signature(sampler).parameters) and count != stated:
    raise ValueError(
      f'the data must hold the {stated} examples of this client by which {by} draws, got {count}: '
      'use a sampler that takes no sizes, such as uniform, or the configured data.'
    )
