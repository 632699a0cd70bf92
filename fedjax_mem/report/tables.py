"""Tables of runs: text, Markdown or CSV; means and deviations over seeds."""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len

from fedjax_mem.report.runs import MAIN, Run, Source, as_runs, finished, marked, rounds_done, series

Row = dict[str, Any]
STYLES = ('text', 'markdown', 'csv')
# The model's accuracy on what clients hold out: means over clients and over examples, of the worst
# tenth of the clients, and the standard deviation over clients.
OF_CLIENTS = (
  'client_accuracy_mean',
  'client_accuracy_pooled',
  'client_accuracy_worst',
  'client_accuracy_spread',
)
# Scores on the test set besides the loss and the accuracy; each task has some of them.
FURTHER = ('test_macro_f1', 'test_r2', 'test_mean_average_precision', 'test_perplexity')
# The main score of a task, by key of `summarise`.
MAIN_KEYS = ('final_accuracy', *(f'test_{name}' for name in MAIN if name != 'accuracy'))
LEVEL = 0.95  # of intervals
# Settings that may differ between two seeds of one experiment.
_NOT_SETTINGS = ('seed', 'name', 'data.partition_seed')


def summarise(run: Run) -> Row:
  """Returns the summary of a run; numbers that it did not record are None.

  Keys: run, rounds, final_accuracy, best_accuracy, best_round, the further scores of the task,
  test_loss, train_loss and the accuracies on what clients hold out (the last recorded), clients,
  examples, bytes_up and bytes_down (summed over rounds), seconds (summed), rounds_per_s.
  """
  at, accuracy = series(run, 'test_accuracy')
  finite = [(value, -r) for r, value in zip(at, accuracy, strict=True) if math.isfinite(value)]
  best, best_round = max(finite, default=(None, None))
  _, seconds = series(run, 'seconds')
  total = sum(seconds)
  return {
    'run': run.name,
    'rounds': rounds_done(run),
    'final_accuracy': accuracy[-1] if accuracy else None,
    'best_accuracy': best,
    'best_round': None if best_round is None else -best_round,
    **{key: _last(run, key) for key in FURTHER},
    'test_loss': _last(run, 'test_loss'),
    'train_loss': _last(run, 'train_loss'),
    **{key: _last(run, key) for key in OF_CLIENTS},
    'clients': _sum(run, 'clients'),
    'examples': _sum(run, 'examples'),
    'bytes_up': _sum(run, 'bytes_up'),
    'bytes_down': _sum(run, 'bytes_down'),
    'seconds': total if seconds else None,
    'rounds_per_s': len(seconds) / total if total > 0 else None,
  }


# Keys of a summary that are computed from a metric of another name.
_OF = {
  'final_accuracy': 'test_accuracy',
  'best_accuracy': 'test_accuracy',
  'best_round': 'test_accuracy',
  'rounds': 'round',
  'rounds_per_s': 'seconds',
}


def headed(text: str, key: str, runs: Iterable[Run]) -> str:
  """Returns a heading of a column of summaries, which says if a claim does not cover it.

  Args:
    text: the heading.
    key: key of `summarise`.
    runs: those in the table.
  """
  return marked(text, _OF.get(key, key), runs)


def _last(run: Run, key: str) -> float | None:
  _, values = series(run, key)
  return values[-1] if values else None


def _sum(run: Run, key: str) -> int | None:
  _, values = series(run, key)
  return round(sum(values)) if values else None


def runs_table(sources: Source | Iterable[Source], style: str = 'text') -> str:
  """Returns a table with one line per run; columns without a value are left out.

  The heading of a column says if a claim of privacy does not cover it.

  Args:
    sources: see `as_runs`.
    style: 'text', 'markdown' or 'csv'.
  """
  runs = as_runs(sources)
  rows = [{headed(key, key, runs): x for key, x in summarise(run).items()} for run in runs]
  return format_table(rows, style)


class Interval(NamedTuple):
  """A mean over n seeds, and half the width of its 95% interval by Student's t; None for one."""

  mean: float
  half: float | None
  n: int


def interval(values: Sequence[float]) -> Interval | None:
  """Returns mean ± t(0.975; n - 1) s / sqrt(n), with s the sample's deviation; None of no values.

  >>> round(interval([1.0, 2.0, 3.0]).half, 3)
  2.484
  """
  from scipy.stats import t as student  # imported here: most tables need none

  n = len(values)
  if not n:
    return None
  half = None
  if n > 1:
    half = float(student.ppf((1 + LEVEL) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
  return Interval(statistics.fmean(values), half, n)


def by_settings(runs: Iterable[Run]) -> list[list[Run]]:
  """Returns sets of runs whose settings are equal but for their seeds."""
  groups: dict[str, list[Run]] = {}
  for run in runs:
    groups.setdefault(_settings_key(run), []).append(run)
  return list(groups.values())


def main_score(sources: Iterable[Source]) -> str:
  """Returns the key of `summarise` with the main score of the runs' task."""
  rows = [summarise(run) for run in as_runs(sources)]
  there = (key for key in MAIN_KEYS if any(row[key] is not None for row in rows))
  return next(there, MAIN_KEYS[0])


def over_seeds(sources: Iterable[Source], key: str = 'final_accuracy') -> list[Row]:
  """Returns one row for each set of runs whose settings are equal but for their seeds.

  Args:
    sources: see `as_runs`.
    key: key of `summarise`.

  Returns:
    Rows of `experiment`, `runs` (the number of seeds with a finished run and a finite value),
    `mean`, `deviation` (standard deviation of the sample, with n - 1; None for one run), and every
    setting in which the sets differ.
  """
  groups = by_settings(as_runs(sources))
  differing = differing_keys([group[0] for group in groups])
  rows = []
  for group in groups:
    # Two runs with the same seed count as one observation.
    by_seed = {_seeds_of(run): summarise(run)[key] for run in group if finished(run)}
    values = [float(x) for x in by_seed.values() if x is not None and math.isfinite(x)]
    settings = settings_of(group[0])
    rows.append(
      {
        'experiment': group[0].config.get('name', group[0].name),
        **{name: settings.get(name) for name in differing if name not in _NOT_SETTINGS},
        'runs': len(values),
        'mean': statistics.fmean(values) if values else None,
        'deviation': statistics.stdev(values) if len(values) > 1 else None,
      }
    )
  return rows


def seeds_table(
  sources: Iterable[Source], key: str = 'final_accuracy', style: str = 'text', scale: float = 1.0
) -> str:
  """Returns `over_seeds` as a table, 'mean ± deviation' in one column.

  Args:
    sources: see `as_runs`.
    key: key of `summarise`.
    style: 'text', 'markdown' or 'csv'.
    scale: factor of the numbers; 100 gives per cent, with two decimals.
  """
  runs = as_runs(sources)
  rows = over_seeds(runs, key)
  digits = 2 if scale == 100 else 4
  for row in rows:
    mean, deviation = row.pop('mean'), row.pop('deviation')
    text = '–' if mean is None else f'{scale * mean:.{digits}f}'
    row[headed(key, key, runs)] = (
      text if deviation is None else f'{text} ± {scale * deviation:.{digits}f}'
    )
  return format_table(rows, style)


def settings_of(run: Run) -> Row:
  """Returns the flat settings of a run that change its results (no `execution`, no `deploy`)."""
  return {
    k: x
    for k, x in run.settings.items()
    if not k.startswith(('execution.', 'tracking.', 'deploy.'))
  }


def _settings_key(run: Run) -> str:
  settings = settings_of(run)
  if not settings:
    return run.name  # its settings are unknown: it is a set by itself
  kept = {key: x for key, x in settings.items() if key not in _NOT_SETTINGS}
  return json.dumps(kept, sort_keys=True, default=str)


def _seeds_of(run: Run) -> tuple[Any, ...]:
  settings = settings_of(run)
  return settings.get('seed', run.name), settings.get('data.partition_seed')


def differing_keys(runs: Sequence[Run]) -> list[str]:
  """Returns the flat keys of the configurations whose values are not the same in all runs."""
  flat = [run.settings for run in runs]
  keys = dict.fromkeys(key for x in flat for key in x)
  missing = object()
  return [
    key for key in keys if any(x.get(key, missing) != flat[0].get(key, missing) for x in flat)
  ]


def show(value: Any) -> str:
  """Returns a value as text: four significant digits, '–' for None."""
  if value is None:
    return '–'
  if isinstance(value, bool):
    return 'true' if value else 'false'
  if isinstance(value, int):
    return f'{value:,}' if abs(value) >= 10_000 else str(value)
  if isinstance(value, float):
    return f'{value:.4g}' if abs(value) < 1e4 else f'{value:,.0f}'
  return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def format_table(rows: Sequence[Mapping[str, Any]], style: str = 'text') -> str:
  """Returns rows as a table; columns in which no row has a value are left out.

  Args:
    rows: dicts; their keys are the columns, in the order of first appearance.
    style: 'text' (aligned), 'markdown' or 'csv' (numbers in full).

  Raises:
    ValueError: an unknown style.
  """
  if style not in STYLES:
    raise ValueError(f'style must be one of {", ".join(map(repr, STYLES))}, got {style!r}.')
  heads = list(dict.fromkeys(k for row in rows for k, x in row.items() if x is not None))
  if style == 'csv':
    file = io.StringIO()
    writer = csv.DictWriter(file, heads, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
  cells = [heads, *([show(row.get(head)) for head in heads] for row in rows)]
  if style == 'markdown':
    cells = [[_one_line(x).replace('|', r'\|') for x in line] for line in cells]
    ruled = [cells[0], ['---'] * len(heads), *cells[1:]]
    return ''.join(f'| {" | ".join(line)} |\n' for line in ruled)
  return _aligned([[_one_line(x) for x in line] for line in cells])


def _aligned(cells: list[list[str]]) -> str:
  """Returns lines with aligned columns, two spaces apart."""
  # By cells of a terminal, of which some characters take two or none. rich's own table is not used:
  # importing it takes longer than most commands.
  widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
  filled = (
    [x + ' ' * (n - cell_len(x)) for x, n in zip(line, widths, strict=True)] for line in cells
  )
  return ''.join('  '.join(line).rstrip() + '\n' for line in filled)


def _one_line(text: str) -> str:
  return ' '.join(text.split())
