"""Partitions of examples over clients: pure NumPy functions from labels to lists of rows.

Every function takes labels [T] and gives each example to at most one client; partitions that cover
all labels give it to exactly one. Labels that no client holds are listed in `unused_labels`. Only
`blocks` may repeat examples, if it is asked for more than there are. All draws come from the given
generator, so a partition is a function of its seed.

A new partition is one function in a file of its own and one line in `PARTITIONS`.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.data.partition._base import Partition as Partition
from fedjax_mem.data.partition.blocks import blocks
from fedjax_mem.data.partition.column import column
from fedjax_mem.data.partition.dirichlet import dirichlet
from fedjax_mem.data.partition.feature_noise import feature_noise
from fedjax_mem.data.partition.flower_dirichlet import flower_dirichlet
from fedjax_mem.data.partition.iid import iid
from fedjax_mem.data.partition.inner_dirichlet import inner_dirichlet
from fedjax_mem.data.partition.labels_per_client import labels_per_client
from fedjax_mem.data.partition.natural import natural
from fedjax_mem.data.partition.quantity_skew import quantity_skew
from fedjax_mem.data.partition.sizes import sizes

PARTITIONS: dict[str, Callable[..., Partition]] = {
  'iid': iid,
  'blocks': blocks,
  'dirichlet': dirichlet,
  'flower_dirichlet': flower_dirichlet,
  'inner_dirichlet': inner_dirichlet,
  'labels_per_client': labels_per_client,
  'quantity_skew': quantity_skew,
  'sizes': sizes,
  'feature_noise': feature_noise,
  'natural': natural,
  'column': column,
}
# Partitions that know their clients, so that the number may be left out.
_WHOLE = ('natural', 'column')


def options_of(name: str | None) -> dict[str, inspect.Parameter]:
  """Returns name -> parameter of a partition's options; {} for None.

  Raises:
    ValueError: there is no such partition.
  """
  if name is None:
    return {}
  function = PARTITIONS[validate.one_of(PARTITIONS, partition=name)]
  parameters = inspect.signature(function).parameters.values()
  return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def partition(
  name: str, labels: np.ndarray, num_clients: int | None, *, seed: int, **options: Any
) -> Partition:
  """Returns the partition `name` of the examples.

  >>> labels = np.array([0, 1, 0, 1])
  >>> parts = partition('labels_per_client', labels, 2, seed=0, labels_per_client=1)
  >>> [sorted(rows.tolist()) for rows in np.split(parts.index, parts.offsets[1:-1])]
  [[0, 2], [1, 3]]

  Args:
    name: a key of `PARTITIONS`.
    labels: [T] labels in 0 … K - 1 (or [T, L] tokens for partitions that ignore labels).
    num_clients: N; None: all clients of the data set, for 'natural' and 'column' only.
    seed: seed of all draws of the partition.
    **options: keyword arguments of the partition.

  Raises:
    ValueError: unknown name or option, a missing or bad argument, a client without examples.
  """
  known = options_of(name)
  for option in options:
    if option not in known:
      raise ValueError(
        f'options of partition {name!r} must be among {sorted(known)!r}, got {option!r}.'
        f'{validate.nearest(option, known)}'
      )
  for option, parameter in known.items():
    if parameter.default is inspect.Parameter.empty and option not in options:
      raise ValueError(f'partition {name!r} must be given {option}, got {sorted(options)!r}.')
  if num_clients is not None or name not in _WHOLE:
    validate.integer(num_clients=num_clients)
  rng = np.random.default_rng(validate.integer(0, seed=seed))
  return PARTITIONS[name](labels, num_clients, rng, **options)
