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
  from fedjax_mem.data.own import OWN
  from fedjax_mem.data.own.arrays import from_clients, from_npz
  from fedjax_mem.data.own.builders import from_tfds
  from fedjax_mem.data.own.columns import from_csv, from_parquet, from_table
  from fedjax_mem.data.own.images import from_images
  from fedjax_mem.data.own.texts import from_texts
  from fedjax_mem.data.registry import LOADERS, divided, load, names
  from fedjax_mem.data.source import FederatedData, from_arrays
  from fedjax_mem.data.streaming import StreamedPopulation, must_stream
  from fedjax_mem.data.table import Table, distribute
  from fedjax_mem.data.tfds import prepare

__all__ = (
  'LOADERS',
  'OWN',
  'PARTITIONS',
  'Entry',
  'FederatedData',
  'Partition',
  'StreamedPopulation',
  'Table',
  'describe',
  'distribute',
  'divided',
  'from_arrays',
  'from_clients',
  'from_csv',
  'from_images',
  'from_npz',
  'from_parquet',
  'from_table',
  'from_texts',
  'from_tfds',
  'hold_out_of_clients',
  'load',
  'must_stream',
  'names',
  'partition',
  'prepare',
)

_HOMES = {
  'LOADERS': 'registry',
  'OWN': 'own',
  'Entry': 'listing',
  'FederatedData': 'source',
  'StreamedPopulation': 'streaming',
  'Table': 'table',
  'describe': 'listing',
  'distribute': 'table',
  'divided': 'registry',
  'from_arrays': 'source',
  'from_clients': 'own.arrays',
  'from_csv': 'own.columns',
  'from_images': 'own.images',
  'from_npz': 'own.arrays',
  'from_parquet': 'own.columns',
  'from_table': 'own.columns',
  'from_texts': 'own.texts',
  'from_tfds': 'own.builders',
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
