"""Data: N clients with their examples, from arrays, generators, TFDS and federated data sets."""

from fedjax_mem.data.held import hold_out_of_clients
from fedjax_mem.data.own import OWN
from fedjax_mem.data.own.arrays import from_clients, from_npz
from fedjax_mem.data.own.builders import from_tfds
from fedjax_mem.data.own.columns import from_csv, from_parquet, from_table
from fedjax_mem.data.own.images import from_images
from fedjax_mem.data.own.texts import from_texts
from fedjax_mem.data.partition import PARTITIONS, Partition, partition
from fedjax_mem.data.registry import LOADERS, Entry, describe, divided, load, names
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
