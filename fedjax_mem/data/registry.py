"""Data sets by name: loading them partitioned over clients, and listing them.

A new data set is one function and one line in `LOADERS`. Research code needs no fork: a name may be
`package.module:function`, a function that returns a `Table` or a `FederatedData`.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_mem.core import validate
from fedjax_mem.data import flat, places, tfds
from fedjax_mem.data.digits import load_digits
from fedjax_mem.data.own import OWN
from fedjax_mem.data.partition import options_of
from fedjax_mem.data.source import FederatedData
from fedjax_mem.data.synthetic import load_synthetic
from fedjax_mem.data.table import Table, distribute, hold_out

LOADERS: dict[str, Callable[..., Table]] = {
  'digits': load_digits,
  'synthetic': load_synthetic,
}
_OURS = {'num_clients', 'seed', 'data_dir', 'client_ids'}
_SIZES = {
  'digits': '1,438 + 359 images of 8 x 8, 10 labels',
  'synthetic': '30 clients, 60 features, 10 labels (FedProx)',
  'fashion_mnist': '60,000 + 10,000 images of 28 x 28, 10 labels',
  'fed_emnist': '3,400 clients, 671,585 + 77,483 images of 28 x 28, 62 labels',
  'fed_emnist/digits': '3,383 clients, 341,873 + 40,832 images of 28 x 28, 10 labels',
  'fed_shakespeare': '715 clients, 16,068 + 2,356 snippets, 90 tokens',
  'fed_cifar100': '500 clients, 50,000 + 10,000 images of 32 x 32 x 3, 100 labels',
  'fed_stackoverflow': '342,477 clients, 135,818,730 + 16,586,035 sentences, 10,004 tokens',
}


class Entry(NamedTuple):
  """One line of `fedjax-mem data list`.

  Attributes:
    name: name of the data set.
    size: numbers of clients and examples, as text.
    where: folder of the data set, 'built in', or ''.
    available: whether `load` can load it.
    remedy: command or files that make it available, or ''.
  """

  name: str
  size: str
  where: str
  available: bool
  remedy: str


def load(
  name: str,
  *,
  partition: str | None = None,
  num_clients: int | None = None,
  seed: int = 0,
  data_dir: tfds.Folder = None,
  validation: float = 0.0,
  **options: Any,
) -> FederatedData:
  """Returns a data set, partitioned over clients.

  >>> data = load('digits', partition='iid', num_clients=5)
  >>> data.counts.tolist(), data.input_shape, data.num_classes
  ([288, 288, 288, 287, 287], (8, 8, 1), 10)

  Args:
    name: a key of `LOADERS`, of `OWN` (your own files) or of `tfds.BUILDERS`, a data set of TFDS
      that is prepared, or `package.module:function`.
    partition: a key of `partition.PARTITIONS`; None: 'natural' if the examples come with clients,
      else 'iid'.
    num_clients: N; None only for 'natural' and 'column' (all clients) and 'synthetic' (30).
    seed: seed of the partition, and of synthetic data.
    data_dir: folder of prepared data; None: as `places` says.
    validation: share of the training examples that the server holds and no client gets, in [0, 1).
    **options: options of the data set if its loader takes them, else of the partition.

  Raises:
    ValueError: an unknown name or option, data that are missing or damaged, or a bad argument.
  """
  loader = LOADERS.get(name) or OWN.get(name)
  if loader is None and ':' in name:
    loader = validate.imported('function', data=name)
  if loader is None:
    table = hold_out(_prepared(name, data_dir), validation, seed)
    return distribute(table, partition, num_clients, seed, **options)
  known = inspect.signature(loader).parameters
  # A loader of synthetic data takes the number of clients and the seed itself.
  given = {**options, 'num_clients': num_clients, 'seed': seed, 'data_dir': data_dir}
  mine = {k: v for k, v in given.items() if k in known and v is not None}
  for option, parameter in known.items():
    optional = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    if parameter.default is parameter.empty and option not in mine and not optional:
      raise ValueError(
        f'data {name!r} must be given the option {option!r}, got {sorted(options)!r}.'
      )
  loaded = loader(**mine)
  rest = {k: v for k, v in options.items() if k not in known}
  if isinstance(loaded, FederatedData):
    return divided(loaded, partition, num_clients, seed, validation)
  choices = (set(known) | set(options_of(partition))) - _OURS
  for option in rest:
    if option not in choices:
      raise ValueError(
        f'options of data {name!r} must be among {sorted(choices)!r}, got {option!r}.'
        f'{validate.nearest(option, choices)}'
      )
  return divided(loaded, partition, num_clients, seed, validation, **rest)


def divided(
  loaded: Table | FederatedData,
  partition: str | None = None,
  num_clients: int | None = None,
  seed: int = 0,
  validation: float = 0.0,
  **options: Any,
) -> FederatedData:
  """Returns a table's examples partitioned over clients; a population is returned as it is.

  >>> divided(fm.data.LOADERS['digits'](), 'iid', num_clients=3).counts.tolist()
  [480, 479, 479]

  Args:
    loaded: the examples.
    partition: as in `load`.
    num_clients: as in `load`.
    seed: as in `load`.
    validation: as in `load`.
    **options: options of the partition.

  Raises:
    ValueError: a bad argument, or a validation split of data that say themselves who holds what.
  """
  if not isinstance(loaded, FederatedData):
    table = hold_out(loaded, validation, seed)
    return distribute(table, partition, num_clients, seed, **options)
  if validation:
    raise ValueError(
      f'validation must be 0 for {loaded.name!r}, which says itself who holds what, got '
      f'{validation!r}: let it give a FederatedData with a validation split.'
    )
  return loaded


def _prepared(name: str, data_dir: tfds.Folder) -> Table:
  try:
    return tfds.load(name, data_dir)
  except ValueError as error:
    hint = '' if name in tfds.BUILDERS else validate.nearest(name, (*names(), *OWN))
    raise ValueError(f'{error}{"." + hint if hint else ""}') from error


def names() -> tuple[str, ...]:
  """Returns the names of the data sets that need no builder of TFDS's own.

  >>> 'digits' in names(), 'cifar10' in names()
  (True, False)
  """
  return (*LOADERS, *tfds.BUILDERS)


def describe(data_dir: tfds.Folder = None) -> list[Entry]:
  """Returns the data sets of this package and all prepared ones, and how to get those missing.

  >>> [(entry.name, entry.available) for entry in describe() if entry.where == 'built in']
  [('digits', True), ('synthetic', True)]

  Args:
    data_dir: folder of prepared data; None: as `places` says.
  """
  entries = [Entry(name, _SIZES.get(name, ''), 'built in', True, '') for name in LOADERS]
  root = places.data_folder(data_dir)
  prepared = {tfds.subfolder(name): name for name in tfds.BUILDERS}
  entries += [_entry(name, root, data_dir) for name in tfds.BUILDERS]
  homes = [p.parent for depth in ('*/*', '*/*/*') for p in root.glob(f'{depth}/{flat.FOLDER}')]
  for name in sorted({str(home.parent.relative_to(root)) for home in homes}):
    if name not in prepared:
      entries.append(_entry(name, root, data_dir))
  return entries


def _entry(name: str, root: Path, data_dir: tfds.Folder) -> Entry:
  size, command = _SIZES.get(name, ''), tfds.command(name, data_dir)
  home = flat.find(root, tfds.subfolder(name))
  if home is not None:
    try:
      table = flat.read(home, command)
    except ValueError:
      return Entry(name, size, str(home), False, command)
    size = size or f'{len(table.arrays["y"]):,} + {len(table.test["y"]):,} examples'
    return Entry(name, size, str(home), True, '')
  source = tfds.manual_folder(name, root)
  if source is not None:
    return Entry(name, size, str(source), False, command)
  return Entry(name, size, '', False, f'{tfds.BUILDERS[name].instructions} Then: {command}')
