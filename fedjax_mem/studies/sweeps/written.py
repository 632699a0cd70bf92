"""The outputs of a sweep: its table, its curves, and all numbers."""

import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.report import bands, figures, latex
from fedjax_mem.report.runs import MAIN
from fedjax_mem.report.tables import Interval, format_table
from fedjax_mem.studies.sweeps.outcome import (
  SCORES,
  LaneResult,
  PointResult,
  SweepResult,
)

_PANELS = {
  **{f'test_{name}': f'Test {words}' for name, words in MAIN.items()},
  'train_loss': 'Training loss',
}
_HEADS = {
  'test_accuracy': 'test accuracy, %',
  'test_r2': 'test R²',
  'test_mean_average_precision': 'test mean average precision',
  'test_loss': 'test loss',
  'train_loss': 'training loss',
  'validation_accuracy': 'validation accuracy, %',
  'validation_r2': 'validation R²',
  'validation_mean_average_precision': 'validation mean average precision',
}


def whole(path: pathlib.Path, text: str) -> None:
  """Writes a file so that a reader finds the old one or the new one, never a part."""
  beside = path.with_name(path.name + '.part')
  beside.write_text(text, encoding='utf-8')
  os.replace(beside, path)


def rows(result: SweepResult) -> list[dict[str, Any]]:
  """Returns the lines of the table, one a point: values, scores ± intervals, epsilon, seeds."""
  uncovered = {name for lane in result.lanes for name in lane.uncovered}
  made = []
  for point in result.points:
    row: dict[str, Any] = {'best': '★' if point.best else ''}
    row |= {key: x if isinstance(x, str) else json.dumps(x) for key, x in point.values.items()}
    for key, head in _HEADS.items():
      found = point.interval(key)
      if any(key in lane.scores for lane in result.lanes):
        head = f'{head} ({NOT_COVERED})' if key in uncovered else head
        row[head] = _shown(found, 100 if key.endswith('accuracy') else 1)
    epsilons = [x.scores['epsilon'] for x in point.lanes if 'epsilon' in x.scores]
    row['ε of a lane'] = max(epsilons) if epsilons else None
    row['seeds'] = len(point.lanes)
    row['failed'] = point.failed or None
    row['ran'] = '; '.join(dict.fromkeys(x.how for x in point.lanes))
    made.append(row)
  return made


def _shown(found: Interval | None, scale: int) -> str:
  if found is None:
    return '–'
  digits = 2 if scale == 100 else 4
  mean = f'{scale * found.mean:.{digits}f}'
  return mean if found.half is None else f'{mean} ± {scale * found.half:.{digits}f}'


def sentences(result: SweepResult) -> list[str]:
  """Returns what every output says: how the best was chosen, failures and privacy."""
  seeds = {len(x.lanes) for x in result.points}
  said = [result.chosen_by]
  if max(seeds) > 1:
    said.append("± is the 95% interval of the mean over seeds, by Student's t")
  said += [
    f'failed: {point.label}, seed {x.seed}: {x.failure}'
    for point in result.points
    for x in point.lanes
    if x.status == 'failed'
  ]
  if result.privacy:
    said.append(f'released together: {result.privacy}')
  return said


def write(result: SweepResult, said: Mapping[str, Any], folder: pathlib.Path) -> None:
  """Writes `table.md`, `.csv`, `.tex` (`.pdf`), `curves.png`, `.svg` and `results.json`.

  Args:
    result: of the sweep.
    said: what was swept, for `results.json`.
    folder: of the sweep.
  """
  table, notes, name = rows(result), sentences(result), said['config']['name']
  below = ''.join(f'- {x}\n' for x in notes)
  whole(folder / 'table.md', f'# {name}\n\n{format_table(table, "markdown")}\n{below}')
  whole(folder / 'table.csv', format_table(_numbers(result), 'csv'))
  bold = [i for i, x in enumerate(result.points) if x.best]
  source = folder / 'table.tex'
  whole(source, latex.document(table, f'{name}: {result.chosen_by}', bold, '. '.join(notes)))
  latex.compile(source)
  lost = sum(x.failed > 0 for x in result.points)
  words = f'\n{lost} of {len(result.points)} points failed, whole or in part: see the table'
  figure = bands.curves(_panels(result), name, result.chosen_by + (words if lost else ''))
  for suffix in ('png', 'svg'):
    figures.save(figure, folder / f'curves.{suffix}')
  whole(folder / 'results.json', json.dumps(_plain(result, said), indent=1) + '\n')


def _numbers(result: SweepResult) -> list[dict[str, Any]]:
  """Returns the lines of the CSV: numbers in full, mean and half-width in columns of their own."""
  made = []
  for point in result.points:
    row: dict[str, Any] = {key: _cell(x) for key, x in point.values.items()}
    for key in SCORES:
      found = point.interval(key)
      if found is not None:
        row |= {f'{key}_mean': found.mean, f'{key}_half_95': found.half, f'{key}_seeds': found.n}
    row |= {'failed': point.failed, 'best': point.best, 'chosen_by': result.chosen_by}
    made.append(row)
  return made


def _cell(value: Any) -> Any:
  return value if isinstance(value, str | int | float) else json.dumps(value)


def _panels(result: SweepResult) -> dict[str, dict[str, bands.Band]]:
  uncovered = {name for lane in result.lanes for name in lane.uncovered}
  made = {}
  for key, heading in _PANELS.items():
    found = {x.label: _band(x, key) for x in result.points}
    drawn = {label: band for label, band in found.items() if band is not None}
    if drawn:
      made[f'{heading} ({NOT_COVERED})' if key in uncovered else heading] = drawn
  return made


def _band(point: PointResult, key: str) -> bands.Band | None:
  """Returns the curve of a point over its lanes."""
  return bands.band([_series(lane, key) for lane in point.lanes], point.best)


def _series(lane: LaneResult, key: str) -> dict[int, float]:
  return {r['round']: r[key] for r in lane.metrics if key in r}


def _plain(result: SweepResult, said: Mapping[str, Any]) -> dict[str, Any]:
  """Returns all numbers as plain data."""
  return {
    **{key: said[key] for key in ('config', 'grid', 'seeds')},
    'select': result.select,
    'chosen_by': result.chosen_by,
    'best': None if result.best is None else result.best.values,
    'privacy': result.privacy,
    'points': [
      {
        'values': point.values,
        'best': point.best,
        'failed': point.failed,
        **{k: x._asdict() for k in SCORES if (x := point.interval(k)) is not None},
        'lanes': [_lane(x, result.folder) for x in point.lanes],
      }
      for point in result.points
    ],
  }


def _lane(x: LaneResult, folder: pathlib.Path) -> dict[str, Any]:
  return {
    'seed': x.seed,
    'status': x.status,
    'failure': x.failure or None,
    'ran': x.how,
    'rounds': len(x.metrics),
    'folder': str(x.folder.relative_to(folder)),
    'scores': {k: v if math.isfinite(v) else None for k, v in x.scores.items()},
  }


def summary(result: SweepResult) -> str:
  """Returns the table and its sentences for a terminal."""
  return format_table(rows(result)) + '\n' + ''.join(f'{x}\n' for x in sentences(result))


def paths(folder: pathlib.Path) -> Sequence[str]:
  """Returns the names of the outputs that are there."""
  names = ('table.md', 'table.csv', 'table.tex', 'table.pdf', 'curves.png', 'curves.svg')
  return [x for x in (*names, 'results.json') if (folder / x).exists()]
