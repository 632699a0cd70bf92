"""The list of data sets: what there is, where each is found, and how to get what is missing.

It imports no jax, nor what reads the examples: the command line shows it at once.
"""

from pathlib import Path
from typing import NamedTuple

from fedjax_mem.data import flat, places, tfds

# Those of `registry.LOADERS`, and their sizes.
BUILT_IN = {
  'digits': '1,438 + 359 images of 8 x 8, 10 labels',
  'synthetic': '30 clients, 60 features, 10 labels (FedProx)',
}
_SIZES = {
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


def describe(data_dir: tfds.Folder = None) -> list[Entry]:
  """Returns the data sets of this package and all prepared ones, and how to get those missing.

  >>> [(entry.name, entry.available) for entry in describe() if entry.where == 'built in']
  [('digits', True), ('synthetic', True)]

  Args:
    data_dir: folder of prepared data; None: as `places` says.
  """
  entries = [Entry(name, size, 'built in', True, '') for name, size in BUILT_IN.items()]
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
      arrays = flat.check(home, command)[1]
    except ValueError:
      return Entry(name, size, str(home), False, command)
    size = size or f'{len(arrays["train_y.npy"]):,} + {len(arrays["test_y.npy"]):,} examples'
    return Entry(name, size, str(home), True, '')
  source = tfds.manual_folder(name, root)
  if source is not None:
    return Entry(name, size, str(source), False, command)
  return Entry(name, size, '', False, f'{tfds.BUILDERS[name].instructions} Then: {command}')
