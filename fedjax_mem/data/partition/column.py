"""One client for each value of a column of the table."""

from typing import Any

import numpy as np

from fedjax_mem.data.partition._base import Partition
from fedjax_mem.data.partition.natural import natural


def column(
  labels: np.ndarray, num_clients: int | None, rng: np.random.Generator, *, column: Any
) -> Partition:
  """Returns the partition into one client for each value of a column, in the order of the values.

  In `data.distribute`, and so in a configuration, `column` is the name of a column of the table:
  one of `Table.columns`, 'y', or the number of a feature of 'x' [T, F].

  >>> sites = np.array(['b', 'a', 'b'])
  >>> parts = column(np.zeros(3, int), None, np.random.default_rng(0), column=sites)
  >>> parts.names, parts.index.tolist(), parts.offsets.tolist()
  (('a', 'b'), [1, 0, 2], [0, 1, 3])

  Args:
    labels: [T], to find unused labels.
    num_clients: number of clients to draw without replacement; None: all.
    rng: source of that draw.
    column: [T] numbers or strings, the value of each example; a value is its client's name.

  Raises:
    ValueError: not one value an example, a NaN, or values that cannot be ordered.
  """
  values = np.asarray(column)
  if values.shape != (len(labels),):
    raise ValueError(f'column must be {len(labels)} values, got shape {values.shape!r}.')
  try:
    names, client_ids = np.unique(values, return_inverse=True)
  except TypeError as error:
    raise ValueError(f'column must be of values of one kind, got {error}.') from None
  if (names != names).any():
    raise ValueError('column must have a value for each example, got NaN in it.')
  parts = natural(labels, num_clients, rng, client_ids=client_ids.astype(np.int32))
  return parts._replace(names=tuple(map(str, names[parts.clients])))
