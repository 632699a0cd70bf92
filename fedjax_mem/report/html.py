"""One page about one run or several: a single file that needs no network and runs no script.

Every string that comes from a run is escaped; the plots are embedded as PNG, once for light and
once for dark readers.
"""

import base64
import html
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedjax_mem.report import plots
from fedjax_mem.report.runs import Run, Source, as_runs, flatten, warnings
from fedjax_mem.report.tables import differing_keys, over_seeds, show, summarise

_CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --paper: #ffffff;
  --card: #f6f8fa; --line: #d1d9e0; --mark: #fff3c4; --warn: #9a3b00; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #d8dce2; --soft: #98a1ab;
  --paper: #16191d; --card: #1f242a; --line: #3a4048; --mark: #4a3f14; --warn: #ffb27a;
  --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
.sub { color: var(--soft); margin: .2rem 0 1.2rem; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr));
  gap: .7rem; margin: 0; }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .6rem .8rem; }
.cards dt { color: var(--soft); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; padding: .3rem .9rem .3rem .3rem; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td:not(.n) { overflow-wrap: anywhere; min-width: 5rem; }
th code { white-space: nowrap; }
thead th { border-bottom-width: 2px; }
tbody th { font-weight: 500; }
td.n { font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.differs > * { background: var(--mark); }
td.best { font-weight: 700; color: var(--accent); }
.warnings { border-left: .3rem solid var(--warn); background: var(--card);
  padding: .6rem 1rem .6rem 2rem; margin: 1.2rem 0; }
img { max-width: 100%; height: auto; display: block; }
details { margin: .7rem 0; }
summary { cursor: pointer; font-weight: 600; }
code { font-size: .92em; }
@media print { body { max-width: none; } .wide { overflow: visible; } }
""".strip()

_HEADS = {
  'run': 'run',
  'rounds': 'rounds',
  'final_accuracy': 'final accuracy',
  'best_accuracy': 'best accuracy',
  'best_round': 'best in round',
  'test_loss': 'test loss',
  'train_loss': 'training loss',
  'clients': 'clients trained',
  'examples': 'examples',
  'bytes_up': 'sent by clients',
  'bytes_down': 'sent to clients',
  'seconds': 'training time',
  'rounds_per_s': 'rounds per second',
}
_PERCENT = ('final_accuracy', 'best_accuracy')


def write_report(
  sources: Source | Iterable[Source], path: str | os.PathLike, title: str | None = None
) -> pathlib.Path:
  """Writes the page about one run or several and returns its path.

  Args:
    sources: one or several of: a run's folder, a `Run`, a list of records.
    path: of the HTML file; its folder is made if it is missing.
    title: of the page; None = the run's name, or the number of runs.

  Raises:
    ValueError: a folder is not a run's, or there is no run at all.
  """
  page = render(sources, title)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(path.name + '.tmp')
  beside.write_text(page, encoding='utf-8')
  os.replace(beside, path)  # a reader finds the old page or the whole new one
  return path


def render(sources: Source | Iterable[Source], title: str | None = None) -> str:
  """Returns the page as text; see `write_report`."""
  runs = as_runs(sources)
  if not runs:
    raise ValueError('a report must be of at least one run, got none.')
  one = len(runs) == 1
  title = title or (runs[0].name if one else f'{len(runs)} runs compared')
  parts = [
    _heading(runs, title),
    _warnings(runs),
    '' if one else _comparison(runs),
    '<h2>Learning curves</h2>',
    _curves(runs),
    _pictures(runs),
    _last_records(runs),
    _settings(runs),
    _manifests(runs),
  ]
  body = '\n'.join(part for part in parts if part)
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{_text(title)}</title>\n<style>\n{_CSS}\n</style>\n</head>\n'
    f'<body>\n{body}\n</body>\n</html>\n'
  )


def _text(value: Any) -> str:
  return html.escape(value if isinstance(value, str) else show(value))


def _summary_text(key: str, value: Any) -> str:
  if value is None:
    return '–'
  if key in _PERCENT:
    return f'{100 * value:.2f} %'
  if key == 'seconds':
    return duration(value)
  if key.startswith('bytes'):
    return f'{value / 1e6:,.1f} MB'
  return _text(f'{value:,}' if isinstance(value, int) else value)


def duration(seconds: float) -> str:
  """Returns a time for a reader: '42.0 s', '3 min 05 s', '2 h 07 min'."""
  if seconds < 60:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {rest:02d} s'
  return f'{minutes // 60} h {minutes % 60:02d} min'


def _heading(runs: Sequence[Run], title: str) -> str:
  lines = [f'<h1>{_text(title)}</h1>']
  if len(runs) > 1:
    return lines[0]
  run = runs[0]
  config = dict(flatten(run.config))
  facts = [
    f'{name} {config[key]}'
    for name, key in (
      ('data', 'data.name'), ('partition', 'data.partition'), ('model', 'model.name'),
      ('algorithm', 'algorithm.name'), ('server', 'server.optimizer'), ('seed', 'seed'),
    )
    if key in config
  ]  # fmt: skip
  if facts:
    lines.append(f'<p class="sub">{_text(" · ".join(facts))}</p>')
  lines.append('<dl class="cards">')
  for key, value in summarise(run).items():
    if key != 'run' and value is not None:
      lines.append(f'<div><dt>{_HEADS[key]}</dt><dd>{_summary_text(key, value)}</dd></div>')
  lines.append('</dl>')
  return '\n'.join(lines)


def _warnings(runs: Sequence[Run]) -> str:
  named = [
    (f'{run.name}: ' if len(runs) > 1 else '') + text for run in runs for text in warnings(run)
  ]
  if not named:
    return ''
  items = ''.join(f'<li>{_text(x)}</li>' for x in named)
  return f'<ul class="warnings" role="note" aria-label="warnings">{items}</ul>'


def _table(heads: Sequence[str], rows: Iterable[str]) -> str:
  head = ''.join(f'<th scope="col">{_text(x)}</th>' for x in heads)
  return (
    f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
    f'<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>'
  )


def _comparison(runs: Sequence[Run]) -> str:
  rows = [summarise(run) for run in runs]
  keys = [key for key in rows[0] if any(row[key] is not None for row in rows)]
  best = {
    key: max((row[key] for row in rows if row[key] is not None), default=None) for key in _PERCENT
  }
  lines = []
  for row in rows:
    cells = [f'<th scope="row">{_text(row["run"])}</th>']
    for key in keys[1:]:
      mark = ' best' if key in best and row[key] == best[key] is not None else ''
      cells.append(f'<td class="n{mark}">{_summary_text(key, row[key])}</td>')
    lines.append(f'<tr>{"".join(cells)}</tr>')
  return f'<h2>Results</h2>\n{_table([_HEADS[key] for key in keys], lines)}{_seeds(runs)}'


def _seeds(runs: Sequence[Run]) -> str:
  """Returns means over seeds, if any setting was run with several."""
  rows = over_seeds(runs)
  if all(row['runs'] < 2 for row in rows):
    return ''
  names = [key for key in rows[0] if key not in ('runs', 'mean', 'deviation')]
  lines = []
  for row in rows:
    mean, deviation = row['mean'], row['deviation']
    text = '–' if mean is None else f'{100 * mean:.2f} %'
    if deviation is not None:
      text = f'{100 * mean:.2f} ± {100 * deviation:.2f} %'
    cells = ''.join(f'<td>{_text(row[key])}</td>' for key in names)
    lines.append(f'<tr>{cells}<td class="n">{row["runs"]}</td><td class="n">{text}</td></tr>')
  return '\n<h2>Final accuracy over seeds</h2>\n' + _table(
    [*names, 'seeds', 'mean ± standard deviation'], lines
  )


def _curves(runs: Sequence[Run]) -> str:
  light, dark = (_data(plots.png(plots.learning_curves(runs, dark=x))) for x in (False, True))
  names = ', '.join(run.name for run in runs)
  return (
    f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    f'<img src="{light}" alt="Test accuracy and loss against rounds of {_text(names)}"></picture>'
  )


def _data(image: bytes) -> str:
  return 'data:image/png;base64,' + base64.b64encode(image).decode()


def _pictures(runs: Sequence[Run]) -> str:
  """Embeds the pictures that a single run left beside its learning curves."""
  folder = runs[0].folder
  if len(runs) > 1 or folder is None:
    return ''
  found = []
  for name, head in (
    ('partition.png', 'Partition of the data'),
    ('contributions.png', 'Contribution of each client'),
  ):
    if (folder / name).is_file():
      image = _data((folder / name).read_bytes())
      found.append(f'<h2>{head}</h2>\n<img src="{image}" alt="{head}">')
  return '\n'.join(found)


def _last_records(runs: Sequence[Run]) -> str:
  columns = [dict(flatten(run.records[-1])) if run.records else {} for run in runs]
  table = _columns(runs, columns, mark=())
  return f'<details><summary>Last record</summary>\n{table}</details>' if table else ''


def _settings(runs: Sequence[Run]) -> str:
  columns = [dict(flatten(run.config)) for run in runs]
  differing = [key for key in differing_keys(runs) if key != 'name']  # It heads the column.
  table = _columns(runs, columns, mark=differing)
  if not table:
    return ''
  first = [{key: x[key] for key in differing if key in x} for x in columns]
  changed = _columns(runs, first, mark=differing)
  above = f'<h2>Settings that differ</h2>\n{changed}\n' if changed else ''
  return f'{above}<details><summary>All settings</summary>\n{table}</details>'


def _manifests(runs: Sequence[Run]) -> str:
  columns = [
    dict(flatten({k: x for k, x in run.manifest.items() if k != 'warnings'})) for run in runs
  ]
  differing = [
    key
    for key in dict.fromkeys(key for column in columns for key in column)
    if any(column.get(key) != columns[0].get(key) for column in columns)
  ]
  table = _columns(runs, columns, mark=differing)
  head = 'Versions, devices and execution'
  opened = ' open' if len(runs) == 1 else ''
  return f'<details{opened}><summary>{head}</summary>\n{table}</details>' if table else ''


def _columns(runs: Sequence[Run], columns: Sequence[Mapping[str, Any]], mark: Sequence[str]) -> str:
  """Returns a table with a line for every key and a column for every run."""
  keys = list(dict.fromkeys(key for column in columns for key in column))
  if not keys:
    return ''
  lines = []
  for key in keys:
    cells = ''.join(f'<td>{_text(column.get(key))}</td>' for column in columns)
    differs = ' class="differs"' if key in mark else ''
    lines.append(f'<tr{differs}><th scope="row"><code>{_text(key)}</code></th>{cells}</tr>')
  heads = [run.name for run in runs] if len(runs) > 1 else ['value']
  return _table(['', *heads], lines)
