"""What comes of cells: the published number beside ours, the difference, curves, the source.

A difference is in published standard deviations where there is one, in points (of per cent) else.
It is large from 3 deviations or, without them, 1 point on. A deviation of over 5 points means that
the published seeds differ so much that one seed decides nothing.
"""

import json
import os
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_mem.report import citing, curves, figures, latex
from fedjax_mem.report.tables import format_table
from fedjax_mem.studies.cells import Number, Published

LARGE_DEVIATIONS, LARGE_POINTS, UNSTABLE_POINTS = 3.0, 1.0, 5.0
_NOTHING = 'one seed decides nothing'


def rows(table: Published, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Returns the lines of the table, one for each method and setting that has run.

  Args:
    table: of the cells.
    found: what their files say.
  """
  lines = []
  for (method, setting), group in _groups(table, found).items():
    # A run that failed at once has no accuracy.
    values = [100 * x['best_accuracy'] for x in group if x['best_accuracy'] is not None]
    mean = statistics.fmean(values) if values else None
    number = table.numbers.get((method, setting))
    line = {
      table.setting: setting,
      'method': method,
      'published, %': number and _spread(number.mean, number.deviation),
      'published, seed 42': number and number.single and f'{number.single:.1f}',
      'ours, %': None if mean is None else _spread(mean, _deviation(values)),
      'seeds': ' '.join(str(x['seed']) for x in group),
      'difference': None if number is None or mean is None else _difference(number, mean),
    }
    notes = [table.notes.get((method, setting), ''), *_warnings(number, values)]
    notes += [f'seed {x["seed"]} failed: {x["failure"]}' for x in group if 'failure' in x]
    rounds = {x['rounds'] for x in group}
    notes.append(f'rounds {sorted(rounds)}' if len(rounds) > 1 else '')
    lines.append({**line, 'note': '; '.join(filter(None, notes)) or None})
  return lines


def write(
  table: Published, found: Sequence[Mapping[str, Any]], out: str | os.PathLike[str]
) -> list[pathlib.Path]:
  """Writes the table (Markdown, CSV, LaTeX, PDF where `pdflatex` is), curves, manifest and source.

  Args:
    table: of the cells.
    found: what their files say, at least one.
    out: folder; the files have the table's name.

  Returns:
    The files.
  """
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  lines = rows(table, found)
  head = ''.join(f'- {x}\n' for x in (*table.says, *_commits(found)))
  texts = {
    'md': f'{head}\n{format_table(lines, "markdown")}',
    'csv': format_table(lines, 'csv'),
    'tex': latex.document(lines, table.title, notes='. '.join(table.says)),
    'bib': citing.entries(table.sources),
    'json': json.dumps({'table': table.name, 'says': table.says, 'cells': list(found)}, indent=2)
    + '\n',
  }
  files = []
  for suffix, text in texts.items():
    files.append(out / f'{table.name}.{suffix}')
    files[-1].write_text(text, encoding='utf-8')
  pdf = latex.compile(out / f'{table.name}.tex')
  files += [pdf] if pdf else []
  panels: dict[str, dict[str, list[curves.Curve]]] = {}
  levels: dict[str, dict[str, float]] = {}
  for (method, setting), group in _groups(table, found).items():
    panels.setdefault(setting, {})[method] = [
      {int(r): x for r, x in one['curve'].items() if x is not None} for one in group
    ]
    if number := table.numbers.get((method, setting)):
      levels.setdefault(setting, {})[method] = number.mean / 100
  figure = curves.panels(panels, levels, table.title, 'dashed: published')
  return [*files, figures.save(figure, out / f'{table.name}.png')]


def _groups(
  table: Published, found: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
  """Returns (method, setting) -> its cells, in the order of the table."""
  order = [(method, setting) for setting in table.settings for method in table.methods]
  groups = {pair: [x for x in found if (x['method'], x['partition']) == pair] for pair in order}
  return {pair: group for pair, group in groups.items() if group}


def _deviation(values: Sequence[float]) -> float | None:
  return statistics.stdev(values) if len(values) > 1 else None


def _spread(mean: float, deviation: float | None) -> str:
  return f'{mean:.2f}' if deviation is None else f'{mean:.2f} ± {deviation:.2f}'


def _difference(number: Number, mean: float) -> str:
  """Returns ours - published, in deviations where there is one, else in points."""
  points = mean - number.mean
  if number.deviation:
    return f'{points / number.deviation:+.1f} sd'
  return f'{points:+.2f} points'


def _warnings(number: Number | None, values: Sequence[float]) -> list[str]:
  """Returns what a reader must know before comparing our values, in per cent, with a number."""
  if number is None or not values:
    return []
  few = (number.deviation or 0.0) > UNSTABLE_POINTS and len(values) == 1
  large = is_large(number, statistics.fmean(values))
  return [_NOTHING] * few + ['a large difference'] * large


def is_large(number: Number, mean: float) -> bool:
  """Returns whether a mean of ours, in per cent, is so far off that it has to be explained."""
  if number.deviation:
    return abs(mean - number.mean) > LARGE_DEVIATIONS * number.deviation
  return abs(mean - number.mean) > LARGE_POINTS


def _commits(found: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  """Returns a line about the commits of the cells, if they are of several."""
  known = list(dict.fromkeys(str(x['commit'])[:12] for x in found))
  return (f'cells of several commits: {", ".join(known)}',) if len(known) > 1 else ()
