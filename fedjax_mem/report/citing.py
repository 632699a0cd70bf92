"""What to cite for an experiment, as BibTeX: the package, each method, the model and the data.

Entries are those of `references.bib`, as they stand there: nothing is added to them but the version
of the package. Lines that start with % are for the reader; BibTeX skips them.
"""

import functools
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from fedjax_mem._version import __version__
from fedjax_mem.report import sources
from fedjax_mem.report.runs import Run

TOOL = 'fedjax_mem'
_ENTRY = re.compile(r'^@\w+\{([^,\s]+),\n.*?^\}$', re.MULTILINE | re.DOTALL)


class Cited(NamedTuple):
  """What one key of a configuration names, and where that comes from.

  Attributes:
    key: of the configuration, such as 'stages[0].use'.
    name: its value.
    keys: of `references.bib`; none for a method of this package, which is cited by the package.
      None: it is not of this package, which knows no source of it.
  """

  key: str
  name: str
  keys: tuple[str, ...] | None


@functools.cache
def references() -> Mapping[str, str]:
  """Returns key -> entry of all sources, as text."""
  text = (pathlib.Path(__file__).parent / 'references.bib').read_text(encoding='utf-8')
  return {found[1]: found[0] for found in _ENTRY.finditer(text)}


def entries(keys: Iterable[str]) -> str:
  """Returns the entries of some keys as BibTeX, each once, in the order given.

  >>> entries(['xiao2017fashion', 'xiao2017fashion']).splitlines()[0]
  '@misc{xiao2017fashion,'
  """
  known = references()
  return '\n\n'.join(known[key] for key in dict.fromkeys(keys)) + '\n'


def cited(config: Mapping[str, Any]) -> list[Cited]:
  """Returns what an experiment uses, in the order of its configuration.

  >>> cited({'algorithm': {'name': 'scaffold'}, 'stages': [{'use': 'my.package:layer'}]})
  ... # doctest: +NORMALIZE_WHITESPACE
  [Cited(key='algorithm.name', name='scaffold', keys=('karimireddy2020scaffold',)),
   Cited(key='stages[0].use', name='my.package:layer', keys=None)]

  Args:
    config: the tables of its configuration, as in the `config.toml` of a run; a key that is not
      there is not cited.
  """
  found = []
  for key, table in sources.KEYS.items():
    name = _value(config, key.split('.'))
    if isinstance(name, str):
      found.append(Cited(key, name, table.get(name)))
  statistics = _value(config, ['model', 'statistics'])
  if statistics in sources.STATISTICS:
    found.append(Cited('model.statistics', statistics, sources.STATISTICS[statistics]))
  dtype = _value(config, ['client', 'dtype'])
  if dtype in sources.DTYPES:
    found.append(Cited('client.dtype', dtype, sources.DTYPES[dtype]))
  if _value(config, ['client', 'remat']):
    found.append(Cited('client.remat', 'on', sources.REMAT['on']))
  selection = config.get('selection', {})
  found += [Cited(f'selection.{x}', 'on', ()) for x in ('dropout', 'clock') if selection.get(x)]
  for i, stage in enumerate(config.get('stages', ())):
    found += _stage(f'stages[{i}]', stage)
  privacy = config.get('privacy', {})
  if 'delta' in privacy:
    name = privacy.get('accountant', 'auto')
    found.append(Cited('privacy.accountant', name, sources.ACCOUNTANTS.get(name)))
  return found


def bibtex(configs: Iterable[Mapping[str, Any]] = (), version: str = __version__) -> str:
  """Returns the BibTeX of the package and of all that some experiments use.

  Args:
    configs: the tables of their configurations; none: the package alone.
    version: of the package.
  """
  uses = list(dict.fromkeys(x for config in configs for x in cited(config)))
  tool = references()[TOOL].removesuffix('\n}') + f',\n  note = {{Version {version}}}\n}}\n'
  lines = [f'% {x.key} = {_plain(x.name)}: {_says(x)}' for x in uses]
  keys = [key for x in uses for key in x.keys or ()]
  return '\n'.join([*lines, *([''] if lines else []), tool]) + (
    '\n' + entries(keys) if keys else ''
  )


def of_runs(runs: Iterable[Run]) -> str:
  """Returns the BibTeX of the package, by the versions that made the runs, and of what they use."""
  runs = list(runs)
  versions = dict.fromkeys(str(run.manifest.get(TOOL, __version__)) for run in runs)
  return bibtex((run.config for run in runs), ' and '.join(versions) or __version__)


def _says(use: Cited) -> str:
  if use.keys is None:
    return f'not of {TOOL}: cite its authors'
  return ', '.join(use.keys) or f'of {TOOL} itself: cite {TOOL}'


def _plain(name: str) -> str:
  """Returns a name on one line, without the sign that starts an entry of BibTeX."""
  return ' '.join(name.replace('@', ' at ').split())


def _value(config: Any, path: list[str]) -> Any:
  for part in path:
    config = config.get(part) if isinstance(config, Mapping) else None
  return config


def _stage(key: str, stage: Mapping[str, Any]) -> Iterator[Cited]:
  """Yields what a stage uses: itself, a mechanism of noise, and codecs inside it."""
  name, options = stage.get('use'), stage.get('options', stage)
  if isinstance(name, str):
    yield Cited(f'{key}.use', name, sources.STAGES.get(name))
  for option, value in options.items():
    if option == 'mechanism':
      yield Cited(f'{key}.mechanism', value, sources.MECHANISMS.get(value))
    elif option in ('codec', 'first', 'second'):
      inner = value if isinstance(value, Mapping) else {'use': value}
      yield from _stage(f'{key}.{option}', inner)
