"""Tables of published results: each cell is a run, beside the number that was published for it.

A cell is a method, a setting (such as a partition) and a seed. Its run has a folder, with a
checkpoint every ten minutes; when it ends, one JSON file says what it gave. What is there is not
run again: the command can be stopped, killed and given again, and a cell's file may come from
another machine. It counts if it is of the same configuration.

A file has: table, method, partition (the setting), seed, rounds, examples_seen (examples of the
clients in the sums, times local epochs), best_accuracy and final_accuracy (on the test set, in
[0, 1]), published_mean and published_sd (per cent; null if there is none), seconds (of its rounds),
config_hash, commit and curve (test accuracy by round). The file of a run that failed, as one that
diverges, says what it gave until then and why, as `failure`; it is not run again, and the others go
on.
"""

import json
import math
import os
import pathlib
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from fedjax_mem.config.load import Config, config_hash, load_config
from fedjax_mem.core import validate
from fedjax_mem.report.runs import load_run, series
from fedjax_mem.report.tables import summarise
from fedjax_mem.runner.folder import RunFolder
from fedjax_mem.runner.loop import RunFailed, resume, run

CHECKPOINT_SECONDS = 600.0


class Number(NamedTuple):
  """A published number, in per cent.

  Attributes:
    mean: over the runs that were published.
    deviation: their standard deviation; None if none was published.
    single: what was published for one seed, or None.
  """

  mean: float
  deviation: float | None = None
  single: float | None = None


class Published(NamedTuple):
  """A published table, and how its cells are run.

  Attributes:
    name: of the table, and of its files.
    title: one line, above plots.
    config: the experiment that all cells share, a path or the name of a shipped one.
    methods: name -> overrides of the configuration, as `--set` takes them.
    settings: name -> further overrides.
    setting: what a setting is, such as 'partition'.
    numbers: (method, setting) -> the published number.
    seeds: that are run where none are asked for.
    notes: (method, setting) -> what a reader has to know about the cell.
    also: (method, setting) -> overrides of that cell alone.
    says: what is not as it was published, one line each; shown above the table.
    sources: where it was published, keys of `report/references.bib`.
  """

  name: str
  title: str
  config: str
  methods: Mapping[str, Sequence[str]]
  settings: Mapping[str, Sequence[str]]
  setting: str
  numbers: Mapping[tuple[str, str], Number]
  seeds: tuple[int, ...]
  notes: Mapping[tuple[str, str], str]
  says: tuple[str, ...]
  sources: tuple[str, ...]
  also: Mapping[tuple[str, str], Sequence[str]] = types.MappingProxyType({})


class Cell(NamedTuple):
  """One cell, before it has run.

  >>> from fedjax_mem.studies.niid_bench import TABLE
  >>> cell = cells_of(TABLE, ['fedavg/iid'], [42])[0]
  >>> cell.file, cell.config.seed, cell.config.rounds
  ('fedavg-iid-42.json', 42, 50)

  Attributes:
    method: its name.
    setting: its name.
    config: the experiment.
  """

  method: str
  setting: str
  config: Config

  @property
  def file(self) -> str:
    """The name of its file."""
    return f'{self.method}-{self.setting}-{self.config.seed}.json'


def cells_of(
  table: Published,
  names: Sequence[str] = (),
  seeds: Sequence[int] = (),
  *,
  config: str | pathlib.Path | None = None,
  overrides: Sequence[str] = (),
) -> list[Cell]:
  """Returns the cells of a table, checked, in its order; seed after seed.

  Args:
    table: of which.
    names: 'method/setting', 'method' or 'setting' each; none: all cells.
    seeds: of the runs; none: the table's own.
    config: path of another experiment that the cells share.
    overrides: of every cell's configuration, after its own.

  Raises:
    ValueError: an unknown name, a seed twice, or a bad configuration.
  """
  every = [(method, setting) for setting in table.settings for method in table.methods]
  known = list(dict.fromkeys(name for pair in every for name in ('/'.join(pair), *pair)))
  for name in names:
    validate.one_of(known, cells=name)
  chosen = [pair for pair in every if not names or {'/'.join(pair), *pair} & set(names)]
  seeds = tuple(seeds) or table.seeds
  if len(set(seeds)) != len(seeds):
    raise ValueError(f'seeds must be distinct, got {list(seeds)!r}.')
  made = []
  for seed in seeds:
    for method, setting in chosen:
      own = [*table.methods[method], *table.settings[setting]]
      own += [*table.also.get((method, setting), ()), *overrides, f'seed={seed}']
      own += [f'name={table.name}-{method}-{setting}']
      own += [f'execution.checkpoint_every_seconds={CHECKPOINT_SECONDS}']
      made.append(Cell(method, setting, load_config(config or table.config, own)))
  return made


def run_cells(
  table: Published,
  cells: Sequence[Cell],
  out: str | os.PathLike[str],
  results: str | os.PathLike[str] | None = None,
  *,
  data_dir: str | None = None,
  quiet: bool = False,
  tell: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
  """Runs the cells that are missing, one after the other, and returns what their files say.

  Args:
    table: of the cells.
    cells: from `cells_of`.
    out: folder of the runs.
    results: folder of the cells' files; None: `cells` in the folder of the runs, where a file of
      another configuration is replaced, as its run is still there.
    data_dir: folder of prepared data sets; None: as `data.places` says.
    quiet: no progress bars.
    tell: function that shows a line.

  Raises:
    ValueError: an experiment that cannot be run; `results` has a file of another configuration.
    Interrupted: by Ctrl-C; a second call goes on from there.
  """
  out = pathlib.Path(out)
  given, results = results, out / 'cells' if results is None else pathlib.Path(results)
  found = [_known(cell, results) for cell in cells]
  other = [
    x.file for x, y in zip(cells, found, strict=True) if not y and (results / x.file).exists()
  ]
  if other and given is not None:  # it may be all that is left of hours
    raise ValueError(
      f'results must have no files of other configurations, got {", ".join(other)} in {results}: '
      'choose another folder, or move them.'
    )
  missing = sum(x is None for x in found)
  began, done_ones = time.monotonic(), 0
  for i, cell in enumerate(cells):
    if found[i] is not None:
      continue
    left = ''
    if done_ones:
      seconds = (time.monotonic() - began) / done_ones * (missing - done_ones)
      left = f'; about {_long(seconds)} for all that are left'
    tell(f'cell {done_ones + 1} of {missing}{left}')
    try:
      folder = done(cell.config, out, data_dir, tell, quiet=quiet)
    except RunFailed as error:  # its file says so
      tell(f'failed: {error}')
      folder = _folder(cell.config, out)
    found[i] = facts = _facts(table, cell, folder)
    results.mkdir(parents=True, exist_ok=True)
    _write(results / cell.file, facts)
    done_ones += 1
  return [x for x in found if x is not None]


def read_cells(cells: Sequence[Cell], results: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns what the files of the cells say, without those that have not run."""
  found = (_known(cell, pathlib.Path(results)) for cell in cells)
  return [x for x in found if x is not None]


def done(
  config: Config,
  out: pathlib.Path,
  data_dir: str | None,
  tell: Callable[[str], None],
  *,
  quiet: bool = True,
) -> pathlib.Path:
  """Returns the folder of an experiment's finished run; runs or resumes it if necessary."""
  path = _folder(config, out)
  if not path.exists():
    tell(f'{config.name}, seed {config.seed}: running')
    return run(config, out, data_dir=data_dir, quiet=quiet).folder
  status = RunFolder(path).manifest.get('status')
  if status == 'finished' and (path / 'report.html').exists():
    tell(f'{config.name}, seed {config.seed}: finished before')
    return path
  tell(f'{config.name}, seed {config.seed}: resuming')
  return resume(path, data_dir=data_dir, quiet=quiet).folder


def _folder(config: Config, out: pathlib.Path) -> pathlib.Path:
  return out / f'{config.name}-{config_hash(config)}'


def _known(cell: Cell, results: pathlib.Path) -> dict[str, Any] | None:
  """Returns what the cell's file says; None if there is none, or one of another configuration."""
  path = results / cell.file
  if not path.is_file():
    return None
  try:
    said = json.loads(path.read_text(encoding='utf-8'), parse_constant=_refuse)
    same = said['config_hash'] == config_hash(cell.config)
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{path} must be the file of a cell, got an error: {error!r}.') from error
  return dict(said) if same else None


def _refuse(name: str) -> NoReturn:
  raise ValueError(f'numbers must be finite, got {name}')


def _facts(table: Published, cell: Cell, folder: pathlib.Path) -> dict[str, Any]:
  """Returns what the file of a cell says, read from the folder of its run."""
  ended = load_run(folder)
  summary = summarise(ended)
  number = table.numbers.get((cell.method, cell.setting))
  at, curve = series(ended, 'test_accuracy')
  best, final = summary['best_accuracy'], summary['final_accuracy']
  failed = ended.manifest.get('status') == 'failed'
  if best is None and not failed:
    raise ValueError(f'the run in {folder} must have a finite test accuracy, got none.')
  return {
    'table': table.name,
    'method': cell.method,
    'partition': cell.setting,
    'seed': cell.config.seed,
    'rounds': summary['rounds'],
    'examples_seen': (summary['examples'] or 0) * cell.config.client.epochs,
    'best_accuracy': best,
    'final_accuracy': final if final is not None and math.isfinite(final) else None,
    'published_mean': number and number.mean,
    'published_sd': number and number.deviation,
    'seconds': round(summary['seconds'] or 0.0, 1),
    'config_hash': config_hash(cell.config),
    'commit': ended.manifest.get('commit'),
    'curve': {
      str(r): (round(x, 5) if math.isfinite(x) else None) for r, x in zip(at, curve, strict=True)
    },
  } | ({'failure': ended.manifest['failure']} if failed else {})


def _write(path: pathlib.Path, facts: Mapping[str, Any]) -> None:
  """Writes a file, whole or not at all."""
  beside = path.with_name(path.name + '.tmp')
  beside.write_text(json.dumps(facts, indent=2, allow_nan=False) + '\n', encoding='utf-8')
  os.replace(beside, path)


def _long(seconds: float) -> str:
  """Returns a duration in words: '2 h 5 min', '3 min'."""
  minutes = max(1, round(seconds / 60))
  hours, rest = divmod(minutes, 60)
  return f'{hours} h {rest} min' if hours else f'{rest} min'
