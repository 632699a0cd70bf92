"""Data sets by name: loading them partitioned over clients; `listing.py` lists them.

A new data set is one function, one line in `LOADERS` and one in `listing.py`. Research code needs
no fork: a name may be `package.module:function`, a function that returns a `Table` or a
`FederatedData`.
"""

from collections.abc import Callable
from typing import Any

from fedjax_mem.core import factories, validate
from fedjax_mem.data import tfds
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
_WANTED = factories.Wanted((Table, FederatedData), 'a Table or a FederatedData')
_OURS = {'num_clients', 'seed', 'data_dir', 'client_ids'}


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
  loader = LOADERS.get(name) or OWN.get(name) or (_own(name) if ':' in name else None)
  if name in OWN:
    validate.own_files('give your examples with --data', **_named(name))
  if loader is None:
    table = hold_out(_prepared(name, data_dir), validation, seed)
    return distribute(table, partition, num_clients, seed, **options)
  known = factories.parameters(loader, **_named(name))
  # A loader of synthetic data takes the number of clients and the seed itself.
  given = {**options, 'num_clients': num_clients, 'seed': seed, 'data_dir': data_dir}
  mine = {k: v for k, v in given.items() if k in known and v is not None}
  for argument in factories.missing(known, mine):
    raise ValueError(f'data.options.{argument} must be given for {name!r}, got none.')
  loaded = loader(**mine)
  factories.check_made(_WANTED, loaded, **_named(name))
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


def _named(name: str) -> dict[str, str]:
  return {'data.name': name}


def _own(name: str) -> Callable[..., Any]:
  loader = validate.imported('function', **_named(name))
  factories.check_annotation(_WANTED, loader, **_named(name))
  return loader


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
