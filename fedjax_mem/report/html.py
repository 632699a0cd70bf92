"""An HTML report of one run or several: a single file that needs no network and runs no script.

This module gathers the contents; `templates/page.html` lays them out and escapes every value. Plots
are embedded as PNG, once for the light and once for the dark theme.
"""

import functools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.report import citing, page, plots, sections, seeds
from fedjax_mem.report.page import Cell, Row, Table
from fedjax_mem.report.runs import Run, Source, as_runs, flatten, marked, warnings
from fedjax_mem.report.tables import (
  MAIN_KEYS,
  OF_CLIENTS,
  by_settings,
  differing_keys,
  headed,
  main_score,
  over_seeds,
  show,
  summarise,
)

if TYPE_CHECKING:
  import jinja2

_HEADS = {
  'run': 'run',
  'rounds': 'rounds',
  'final_accuracy': 'final accuracy',
  'best_accuracy': 'best accuracy',
  'best_round': 'best in round',
  'test_macro_f1': 'test macro F1',
  'test_r2': 'test R²',
  'test_mean_average_precision': 'test mean average precision',
  'test_perplexity': 'test perplexity',
  'test_loss': 'test loss',
  'train_loss': 'training loss',
  'client_accuracy_mean': 'clients: mean accuracy',
  'client_accuracy_pooled': 'clients: pooled accuracy',
  'client_accuracy_worst': 'clients: worst 10 %',
  'client_accuracy_spread': 'clients: deviation',
  'clients': 'clients trained',
  'examples': 'examples',
  'bytes_up': 'sent by clients',
  'bytes_down': 'sent to clients',
  'seconds': 'training time',
  'rounds_per_s': 'rounds per second',
}
_BEST = (*MAIN_KEYS, 'best_accuracy')
_PERCENT = ('final_accuracy', 'best_accuracy', *OF_CLIENTS)


def write_report(
  sources: Source | Iterable[Source], path: str | os.PathLike[str], title: str | None = None
) -> pathlib.Path:
  """Writes the report of one run or several and returns its path.

  Args:
    sources: one or several of: a run's folder, a `Run`, a list of records.
    path: path of the HTML file; its folder is made if it is missing.
    title: title of the page; None = the run's name, or the number of runs.

  Raises:
    ValueError: a folder is not a run's, or there is no run at all.
  """
  text = render(sources, title)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(path.name + '.tmp')
  beside.write_text(text, encoding='utf-8')
  os.replace(beside, path)  # a reader finds the old page or the whole new one
  return path


def render(sources: Source | Iterable[Source], title: str | None = None) -> str:
  """Returns the page as text; see `write_report`."""
  runs = as_runs(sources)
  if not runs:
    raise ValueError('a report must be of at least one run, got none.')
  one = len(runs) == 1
  settings, changed = _settings(runs)
  return _template().render(
    title=title or (runs[0].name if one else f'{len(runs)} runs compared'),
    names=[run.name for run in runs],
    facts=_facts(runs[0]) if one else [],
    cards=_cards(runs[0]) if one else [],
    warnings=_warnings(runs),
    comparison=None if one else _comparison(runs),
    seeds=None if one else _seeds(runs),
    curves=_curves(runs),
    sections=sections.of_run(runs[0]) if one else sections.of_runs(runs),
    last=page.columns(runs, [_marked(run) for run in runs]),
    settings=settings,
    changed=changed,
    manifests=_manifests(runs),
    citation=citing.of_runs(runs),
  )


def _curves(runs: Sequence[Run]) -> page.Picture | None:
  alt = f'Scores and losses against rounds of {", ".join(run.name for run in runs)}'
  draw = functools.partial(plots.learning_curves, runs)
  if any(len(group) > 1 for group in by_settings(runs)):
    draw = functools.partial(seeds.learning_curves, runs)
  return page.picture(lambda dark: draw(dark=dark), alt, lambda dark: draw(dark=dark, stacked=True))


@functools.cache
def _template() -> 'jinja2.Template':
  import jinja2  # imported here: programs that write no page do not wait for it

  loader = jinja2.PackageLoader('fedjax_mem.report')
  undefined = jinja2.StrictUndefined
  return jinja2.Environment(loader=loader, autoescape=True, undefined=undefined).get_template(
    'page.html'
  )


def _summary_text(key: str, value: Any) -> str:
  if value is None:
    return '–'
  if key in _PERCENT:
    return f'{100 * value:.2f} %'
  if key == 'seconds':
    return page.duration(value)
  if key.startswith('bytes'):
    return page.size(value)
  return f'{value:,}' if isinstance(value, int) else show(value)


def _facts(run: Run) -> list[str]:
  """Returns the main settings of a run, such as 'data digits'."""
  config = run.settings
  return [
    f'{name} {config[key]}'
    for name, key in (
      ('data', 'data.name'), ('partition', 'data.partition'), ('model', 'model.name'),
      ('algorithm', 'algorithm.name'), ('server', 'server.optimizer'), ('seed', 'seed'),
    )
    if key in config
  ]  # fmt: skip


def _cards(run: Run) -> list[tuple[str, str]]:
  """Returns (name, text) of each result of a run."""
  known = {k: x for k, x in summarise(run).items() if k != 'run' and x is not None}
  return [
    (headed(_HEADS[key], key, [run]), _summary_text(key, value)) for key, value in known.items()
  ]


def _warnings(runs: Sequence[Run]) -> list[str]:
  found = [(run, text) for run in runs for text in warnings(run)]
  return [f'{run.name}: {text}' if len(runs) > 1 else text for run, text in found]


def _comparison(runs: Sequence[Run]) -> Table:
  rows = [summarise(run) for run in runs]
  keys = [key for key in rows[0] if any(row[key] is not None for row in rows)]
  best = {
    key: max((row[key] for row in rows if row[key] is not None), default=None) for key in _BEST
  }
  lines = []
  for row in rows:
    cells = [Cell(row['run'], head=True)]
    for key in keys[1:]:
      marked = key in best and row[key] == best[key] is not None
      kind = 'n best' if marked else 'n'
      cells.append(Cell(_summary_text(key, row[key]), kind=kind))
    lines.append(Row(cells))
  return Table([headed(_HEADS[key], key, runs) for key in keys], lines)


def _seeds(runs: Sequence[Run]) -> Table | None:
  """Returns means over seeds, or None if no setting was run with several seeds."""
  main = main_score(runs)
  rows = over_seeds(runs, main)
  if all(row['runs'] < 2 for row in rows):
    return None
  names = [key for key in rows[0] if key not in ('runs', 'mean', 'deviation')]
  lines = []
  for row in rows:
    mean, deviation = row['mean'], row['deviation']
    scale, unit = (100, ' %') if main == 'final_accuracy' else (1, '')
    text = '–' if mean is None else f'{scale * mean:.2f}{unit}'
    if deviation is not None:
      text = f'{scale * mean:.2f} ± {scale * deviation:.2f}{unit}'
    cells = [Cell(show(row[key])) for key in names]
    lines.append(Row([*cells, Cell(str(row['runs']), kind='n'), Cell(text, kind='n')]))
  mean_of = headed('mean ± standard deviation', main, runs)
  return Table([*names, 'seeds', mean_of], lines)


def _marked(run: Run) -> dict[str, Any]:
  """Returns the values of the last record, by keys that say what a claim does not cover."""
  return {marked(key, key.split('.')[0], [run]): x for key, x in run.last.items()}


def _settings(runs: Sequence[Run]) -> tuple[Table | None, Table | None]:
  """Returns two tables: all settings, and those that differ between runs."""
  columns = [run.settings for run in runs]
  differing = [key for key in differing_keys(runs) if key != 'name']  # the column's heading
  first = [{key: x[key] for key in differing if key in x} for x in columns]
  return page.columns(runs, columns, differing), page.columns(runs, first, differing)


def _manifests(runs: Sequence[Run]) -> Table | None:
  columns = [_stated(run) for run in runs]
  differing = [
    key
    for key in dict.fromkeys(key for column in columns for key in column)
    if any(column.get(key) != columns[0].get(key) for column in columns)
  ]
  return page.columns(runs, columns, differing)


def _stated(run: Run) -> dict[str, Any]:
  """Returns the facts of a manifest, by keys that say what a claim does not cover."""
  bare = run.manifest.get('coverage', {}).get('facts not covered', ())
  facts = {
    f'{key} ({NOT_COVERED})' if key.split('.')[0] in bare else key: x
    for key, x in flatten(run.manifest)
  }
  return {key: x for key, x in facts.items() if key != 'warnings'}
