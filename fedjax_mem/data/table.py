"""A data set before it is partitioned, and its partition into a population."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.partition import Partition, partition
from fedjax_mem.data.preprocess import Batch, Inputs
from fedjax_mem.data.source import Arrays, FederatedData
from fedjax_mem.tasks import LearningTask

# These constants make the draws of noise and of the validation split independent of the
# partition's, which come from the same seed.
_NOISE = 0x6E6F6973
_VALIDATION = 0x76616C69
_CHUNK = 8192


class Table(NamedTuple):
  """Examples before partitioning; they may come with clients (a natural partition).

  Attributes:
    name: name of the data set.
    arrays: 'x' [T, ...] and 'y' [T, ...], labels as the task takes them.
    test: 'x' and 'y' of the test set.
    num_classes: number of classes, labels being in [0, num_classes); for other tasks K.
    input_shape: shape of a preprocessed 'x', without the batch axis.
    preprocess: batch of stored arrays -> batch of model inputs.
    client_ids: [T] int32, the client that each example comes with, or None.
    clients: names of these clients, or None.
    test_client_ids: [test examples] int32, the client that each test example comes with, -1 for a
      client without training examples; or None.
    held: [V] int32, rows of `arrays` held out for validation, which no client gets, or None.
    columns: name -> [T] numbers or strings, what else is known of each example; the partition
      'column' makes clients of one. No model sees them.
    task: what a model learns; None: the next token if 'y' is [T, L], else classification.
    labels: what the user calls the K classes or labels; None: 0 … K - 1.
    weights: [T] numbers > 0, the same for all examples of a client: how much it counts under the
      weighting 'given'; None: the data do not say.
  """

  name: str
  arrays: Arrays
  test: Arrays
  num_classes: int
  input_shape: tuple[int, ...]
  preprocess: Callable[[Batch], Batch]
  client_ids: np.ndarray | None = None
  clients: tuple[str, ...] | None = None
  test_client_ids: np.ndarray | None = None
  held: np.ndarray | None = None
  columns: Mapping[str, np.ndarray] | None = None
  task: LearningTask | None = None
  labels: tuple[Any, ...] | None = None
  weights: np.ndarray | None = None


def hold_out(table: Table, share: float, seed: int) -> Table:
  """Returns the table with a share of its training examples held out for validation.

  They are drawn uniformly, before any partition; the draw depends only on the seed. A natural
  partition leaves out clients all of whose examples are held out.

  Args:
    table: the examples.
    share: share of the training examples, in [0, 1); 0: none are held out, else at least one. At
      least one is left.
    seed: seed of the draw.

  Raises:
    ValueError: the share is not in [0, 1), or there are too few examples.
  """
  validate.fraction(validation=share)
  validate.integer(0, seed=seed)
  if not share:
    return table
  total = len(table.arrays['y'])
  number = max(1, round(share * total))
  if number >= total:
    raise ValueError(f'validation must leave some of {total} examples to train on, got {share!r}.')
  rng = np.random.default_rng([seed, _VALIDATION])
  held = np.sort(rng.choice(total, number, replace=False)).astype(np.int32)
  return table._replace(held=held)


def distribute(
  table: Table,
  name: str | None = None,
  num_clients: int | None = None,
  seed: int = 0,
  **options: Any,
) -> FederatedData:
  """Returns the table's examples, partitioned over clients.

  >>> digits = fm.data.LOADERS['digits']()
  >>> data = distribute(digits, 'labels_per_client', num_clients=4, labels_per_client=2)
  >>> (data.label_counts() > 0).sum(axis=1).tolist()
  [2, 2, 2, 2]

  Args:
    table: the examples.
    name: name of the partition; None: 'natural' if the examples come with clients, else 'iid'.
    num_clients: N; None: all clients, for 'natural' and 'column' only.
    seed: seed of the partition.
    **options: options of the partition; `column` is a name of `columns`, 'y', or the number of a
      feature of 'x' [T, F].

  Raises:
    ValueError: as `partition.partition`; 'natural' for examples without clients; no such column; or
      weights that differ within a client.
  """
  name = name or ('iid' if table.client_ids is None else 'natural')
  kept: Any = slice(None)
  if table.held is not None:
    kept = np.delete(np.arange(len(table.arrays['y']), dtype=np.int32), table.held)
  if name == 'natural':
    if table.client_ids is None:
      raise ValueError(
        f"partition must be another than 'natural' for {table.name!r}, whose examples have no "
        "client of their own, got 'natural'."
      )
    options['client_ids'] = table.client_ids[kept]
  if name == 'column' and 'column' in options:
    options['column'] = _column(table, options['column'])[kept]
  parts = partition(name, table.arrays['y'][kept], num_clients, seed=seed, **options)
  if table.held is not None:
    parts = parts._replace(index=kept[parts.index])
  data = FederatedData(
    table.name,
    table.arrays,
    parts.index,
    parts.offsets,
    table.test,
    table.num_classes,
    table.input_shape,
    table.preprocess,
    _names(table, parts),
    parts.unused_labels,
    _test_clients(table, parts),
    _validation(table),
    task=table.task,  # type: ignore[arg-type]  # None: by the shape of the labels
    labels=table.labels,
    weights=None if table.weights is None else _weights(table, parts),
  )
  return data if parts.noise is None else add_noise(data, parts.noise, seed)


def _column(table: Table, name: Any) -> np.ndarray:
  """Returns the column [T] of a table that `name` is the name or the number of."""
  x = table.arrays['x']
  if isinstance(name, int) and not isinstance(name, bool):
    if x.ndim != 2:
      raise ValueError(f'column must be a name for inputs {x.shape[1:]!r}, got {name!r}.')
    return np.asarray(x[:, validate.integer(0, x.shape[1] - 1, column=name)])
  known = {'y': table.arrays['y'], **(table.columns or {})}
  if not isinstance(name, str) or name not in known:
    raise ValueError(
      f'column must be one of {sorted(known)!r}, or the number of a feature, got {name!r}.'
      f'{validate.nearest(name, known)}'
    )
  return np.asarray(known[name])


def _names(table: Table, parts: Partition) -> tuple[str, ...] | None:
  if parts.names is not None:
    return parts.names
  if parts.clients is None or table.clients is None:
    return None
  return tuple(table.clients[i] for i in parts.clients)


def _validation(table: Table) -> Arrays | None:
  if table.held is None:
    return None
  return {name: np.asarray(x[table.held]) for name, x in table.arrays.items()}


def _test_clients(table: Table, parts: Partition) -> np.ndarray | None:
  """Returns each test example's client, as its position among the chosen ones; -1: none of them."""
  # Only of a natural partition are the ids those of the test examples.
  if parts.clients is None or parts.names is not None or table.test_client_ids is None:
    return None
  size = 1 + max(int(parts.clients.max()), int(table.test_client_ids.max(initial=0)))
  position = np.full(size + 1, -1, np.int32)  # the last entry is that of the id -1
  position[parts.clients] = np.arange(len(parts.clients))
  positions: np.ndarray = position[table.test_client_ids]
  return positions


def add_noise(data: FederatedData, stddev: np.ndarray, seed: int) -> FederatedData:
  """Returns the data with Gaussian noise on each client's preprocessed inputs, stored as float32.

  Args:
    data: the population; each row must be in at most one client's list.
    stddev: [N], standard deviation of each client's noise.
    seed: seed of the noise; a client's noise depends only on the seed and the client's position.
  """
  validate.integer(0, seed=seed)
  arrays, test = _preprocessed(data, data.arrays), _preprocessed(data, data.test)
  for client, scale in enumerate(stddev):
    rows = data.rows(client)
    rng = np.random.default_rng([seed, _NOISE, client])
    noise = rng.standard_normal((len(rows), *data.input_shape), np.float32)
    arrays['x'][rows] += np.float32(scale) * noise
  return dataclasses.replace(
    data,
    arrays=arrays,
    test=test,
    preprocess=Inputs(data.input_shape),
    validation=None if data.validation is None else _preprocessed(data, data.validation),
  )


def _weights(table: Table, parts: Partition) -> np.ndarray:
  """Returns the weight [N] float32 of each client, which all its examples have."""
  each = np.asarray(table.weights, np.float64)[parts.index]
  first = np.repeat(each[parts.offsets[:-1]], np.diff(parts.offsets))
  differs = (each != first) & ~(np.isnan(each) & np.isnan(first))  # NaN is refused as such
  if differs.any():
    place = int(np.argmax(differs))
    client = int(np.searchsorted(parts.offsets, place, side='right')) - 1
    names = _names(table, parts)
    raise ValueError(
      f'weights must be the same in all rows of a client, got {first[place]:g} and {each[place]:g} '
      f'for client {client if names is None else repr(names[client])}, the second in row '
      f'{int(parts.index[place])}.'
    )
  own: np.ndarray = each[parts.offsets[:-1]].astype(np.float32)
  return own


def _preprocessed(data: FederatedData, arrays: Arrays) -> Arrays:
  x = np.empty((len(arrays['y']), *data.input_shape), np.float32)
  for begin in range(0, len(x), _CHUNK):
    part = {name: np.asarray(a[begin : begin + _CHUNK]) for name, a in arrays.items()}
    x[begin : begin + _CHUNK] = np.asarray(data.preprocess(part)['x'])
  return {**arrays, 'x': x}
