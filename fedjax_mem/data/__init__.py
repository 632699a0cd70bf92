"""Data: N clients with their examples, from arrays, generators, TFDS and federated data sets.

All but partitions is imported on first use: `fedjax-mem data list` needs no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

# First: the function and the folder that it is in have one name.
from fedjax_mem.data.partition import PARTITIONS, Partition, partition

if TYPE_CHECKING:
  from fedjax_mem.data.held import hold_out_of_clients
  from fedjax_mem.data.listing import Entry, describe
  from fedjax_mem.data.registry import LOADERS, load, names
  from fedjax_mem.data.source import FederatedData, from_arrays
  from fedjax_mem.data.streaming import StreamedPopulation, must_stream
  from fedjax_mem.data.table import Table, distribute
  from fedjax_mem.data.tfds import prepare

__all__ = (
  'LOADERS',
  'PARTITIONS',
  'Entry',
  'FederatedData',
  'Partition',
  'StreamedPopulation',
  'Table',
  'describe',
  'distribute',
  'from_arrays',
  'hold_out_of_clients',
  'load',
  'must_stream',
  'names',
  'partition',
  'prepare',
)

_HOMES = {
  'LOADERS': 'registry',
  'Entry': 'listing',
  'FederatedData': 'source',
  'StreamedPopulation': 'streaming',
  'Table': 'table',
  'describe': 'listing',
  'distribute': 'table',
  'from_arrays': 'source',
  'hold_out_of_clients': 'held',
  'load': 'registry',
  'must_stream': 'streaming',
  'names': 'registry',
  'prepare': 'tfds',
}


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return getattr(importlib.import_module(f'{__name__}.{_HOMES[name]}'), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
