"""A run as reports read it: its configuration, manifest and records."""

import dataclasses
import json
import math
import pathlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.report.tracker import Record, read_metrics

# The score of a task that says how good a model is, the larger the better, and its words.
MAIN = {'accuracy': 'accuracy', 'r2': 'R²', 'mean_average_precision': 'mean average precision'}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One run, finished or not.

  Attributes:
    name: label in plots and tables: the folder's name.
    records: one record per round, as in `metrics.jsonl`.
    config: tables of the resolved `config.toml`; empty if unknown.
    manifest: facts about the run, such as versions and devices; empty if unknown.
    folder: folder that it was read from, or None.
    settings: all values of the configuration by their dotted keys (derived).
    last: all values of the last record by their dotted keys (derived), without its `covered`.
    uncovered: keys of records that a claim of privacy does not cover (derived); empty without a
      claim. `manifest['coverage']['facts not covered']` are the keys of the manifest.
  """

  name: str
  records: Sequence[Record]
  config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  folder: pathlib.Path | None = None
  settings: Mapping[str, Any] = dataclasses.field(init=False, repr=False)
  last: Mapping[str, Any] = dataclasses.field(init=False, repr=False)
  uncovered: frozenset[str] = dataclasses.field(init=False, repr=False)

  def __post_init__(self) -> None:
    """Derives `settings`, `last` and `uncovered`."""
    last = {k: x for k, x in self.records[-1].items() if k != _COVERED} if self.records else {}
    object.__setattr__(self, 'settings', dict(flatten(self.config)))
    object.__setattr__(self, 'last', dict(flatten(last)))
    claimed = [x for x in self.records if _COVERED in x]
    found = {k for x in claimed for k in x if k != _COVERED and k not in x[_COVERED]}
    object.__setattr__(self, 'uncovered', frozenset(found))


_REMEDY = 'put a sound copy back, or remove the file: a report does without it'
_COVERED = 'covered'  # key of a record: the names of its metrics that a claim of privacy covers


# Metrics 'name' or 'layer/name' that become warnings: their values are numbers or client ids.
_COUNTED = {
  'not_finite': 'updates were not finite and were left out',
  'zeroed': 'updates were not finite and counted as zeros',
  'left_out': 'messages did not fit and were left out',
  'overflow': 'cohorts were larger than their capacity and were cut',
}
Source = Run | str | pathlib.Path | Sequence[Record]


def load_run(folder: str | pathlib.Path) -> Run:
  """Returns the run in a folder; before its first round is done it has no records.

  Raises:
    ValueError: it is not a run's folder, or one of its files is damaged.
  """
  folder = pathlib.Path(folder)
  config, manifest, metrics = (
    folder / name for name in ('config.toml', 'manifest.json', 'metrics.jsonl')
  )
  if not config.is_file() and not metrics.is_file():
    raise ValueError(
      f"a run must be a folder with 'config.toml' and 'metrics.jsonl', got {str(folder)!r}."
    )
  return Run(
    name=folder.resolve().name,
    records=read_metrics(metrics) if metrics.is_file() else [],
    config=_read(config, tomllib.loads),
    manifest=_read(manifest, json.loads),
    folder=folder,
  )


def _read(path: pathlib.Path, parse: Any) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    value = parse(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path} must be readable, got an error: {error}; {_REMEDY}.') from error
  if not isinstance(value, dict):
    raise ValueError(f'{path} must hold a table, got {value!r:.60}; {_REMEDY}.')
  return value


def as_runs(sources: Source | Iterable[Source]) -> list[Run]:
  """Returns runs with distinct names.

  Args:
    sources: one run or several, each a `Run`, a run's folder, or a list of records.
  """
  if isinstance(sources, Run | str | pathlib.Path) or _is_records(sources):
    listed: Iterable[Any] = [sources]
  else:
    listed = sources
  runs = [_as_run(source, i) for i, source in enumerate(listed, 1)]
  taken: dict[str, int] = {}
  for i, run in enumerate(runs):
    taken[run.name] = number = taken.get(run.name, 0) + 1
    if number > 1:
      runs[i] = dataclasses.replace(run, name=f'{run.name} ({number})')
  return runs


def _is_records(source: Any) -> bool:
  return isinstance(source, Sequence) and bool(source) and isinstance(source[0], Mapping)


def _as_run(source: Any, number: int) -> Run:
  if isinstance(source, Run):
    return source
  if isinstance(source, str | pathlib.Path):
    return load_run(source)
  return Run(name=f'run {number}', records=list(source))


def marked(text: str, key: str, runs: Iterable[Run]) -> str:
  """Returns the text about a metric; where a claim of some run does not cover it, it says so.

  Args:
    text: such as a heading.
    key: key of records.
    runs: the runs whose values it is about.
  """
  return f'{text} ({NOT_COVERED})' if any(key in run.uncovered for run in runs) else text


def series(run: Run, key: str) -> tuple[list[int], list[float]]:
  """Returns (rounds, values) of a number in the records; NaN and ∞ are kept."""
  rounds, values = [], []
  for i, record in enumerate(run.records, 1):
    value = record.get(key)
    if isinstance(value, int | float):
      rounds.append(record.get('round', i))
      values.append(float(value))
  return rounds, values


def rounds_done(run: Run) -> int:
  """Returns the round (1-based) of the last record, 0 if there is none."""
  return run.records[-1].get('round', len(run.records)) if run.records else 0


def finished(run: Run) -> bool:
  """Returns whether all configured rounds are recorded; true if their number is unknown."""
  rounds = run.config.get('rounds')
  return not isinstance(rounds, int) or rounds_done(run) >= rounds


def flatten(tables: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields (dotted key, value) of all values in nested tables, in the order of the tables."""
  for key, value in tables.items():
    if isinstance(value, list) and value and all(isinstance(x, Mapping) for x in value):
      value = {str(i): x for i, x in enumerate(value)}
    if isinstance(value, Mapping):
      yield from flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def warnings(run: Run) -> list[str]:
  """Returns warnings to the reader of the results, one sentence each."""
  found = [str(x) for x in run.manifest.get('warnings', [])]
  if not finished(run):
    found.append(
      f'The run is not finished: {rounds_done(run)} of {run.config["rounds"]} rounds are done.'
    )
  for key, words in _COUNTED.items():
    found += _counted(run, key, words)
  for key in ('train_loss', 'test_loss'):
    at, values = series(run, key)
    bad = [r for r, value in zip(at, values, strict=True) if not math.isfinite(value)]
    if bad:
      said = marked(key, key, [run])
      found.append(f'{said} is not finite in {len(bad)} rounds, first in round {bad[0]}.')
  return found


def _counted(run: Run, name: str, words: str) -> list[str]:
  """Returns a sentence for every metric 'name' or 'layer/name' that was not always zero."""
  found = []
  for key in dict.fromkeys(key for record in run.records for key in record):
    if key.rsplit('/', 1)[-1] != name:
      continue
    total, first = 0, None
    ids: dict[int, None] = {}
    for i, record in enumerate(run.records, 1):
      value = record.get(key) or 0
      if isinstance(value, list):
        members = [x for x in value if x >= 0]  # an id of -1 is padding
        ids |= dict.fromkeys(members)
        value = len(members)
      if value and first is None:
        first = record.get('round', i)
      total += value
    if total:
      who = f' (clients {_listed(sorted(ids))})' if ids else ''
      found.append(f'{total:g} {marked(words, key, [run])}, first in round {first}{who}.')
  return found


def _listed(ids: Sequence[int], most: int = 10) -> str:
  shown = ', '.join(map(str, ids[:most]))
  return shown if len(ids) <= most else f'{shown} and {len(ids) - most} more'
