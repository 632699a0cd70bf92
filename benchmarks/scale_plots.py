"""What `benchmarks.scaling --all` shows of what it measured: three pictures, and the page's tables.

Pictures are docs/assets/scaling-*.png; tables stand between markers in docs/guide/scale.md, so the
page has no figure that is not in benchmarks/results/scaling.
"""

import json
import pathlib
from typing import Any

import numpy as np

from benchmarks import rounds
from fedjax_mem.report import figures

ASSETS = rounds.ROOT / 'docs' / 'assets'
PAGE = rounds.ROOT / 'docs' / 'guide' / 'scale.md'
Points = list[dict[str, Any]]
NAMES = {'W1': 'CNN', 'M1': 'MLP', 'W3': 'logistic'}  # of works


def load(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Returns what was measured, part -> its record."""
  return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))}


def series(record: dict[str, Any], name: str) -> Points:
  """Returns the points of a series, in the order in which they were measured."""
  return [x for x in record['points'] if x['series'] == name]


def _ticks(ax: Any, values: Any, compact: bool = True) -> None:
  """Labels an axis at these values alone."""

  def text(x: float) -> str:
    for size, unit in ((1e6, 'M'), (1e3, 'k')) if compact else ():
      if x >= size:
        return f'{x / size:.3g}{unit}'
    return f'{x:,.0f}'

  ax.set_xticks(values, [text(x) for x in values])
  ax.set_xticks([], minor=True)


def _plain(ax: Any, ticks: Any = None) -> None:
  """Labels the y axis by plain numbers, such as 0.01 and 1,000."""
  if ticks is not None:
    ax.set_yticks(ticks)
  ax.yaxis.set_major_formatter(lambda value, _: f'{value:,.10g}')
  ax.yaxis.set_minor_formatter(lambda value, _: '')


def growth(record: dict[str, Any], path: pathlib.Path) -> None:
  """Draws rounds a second against population, cohort and model."""
  panels = (
    ('population', 'clients N of the population', 'logistic, C = 100'),
    ('cohort', 'clients C of a round', 'logistic, 6 examples a client'),
    ('model', 'values D of the model', 'MLP, C = 10 clients of 60 examples'),
  )
  with figures.canvas(12.5, 4.0) as (figure, colours):
    for ax, (name, label, title), colour in zip(
      figure.subplots(1, 3), panels, colours, strict=False
    ):
      points = series(record, name)
      x = np.array([p['x'] for p in points], float)
      middle, low, high = (
        np.array([1 / p[key] for p in points]) for key in ('median_s', 'p90_s', 'p10_s')
      )
      ax.errorbar(
        x,
        middle,
        [middle - low, high - middle],
        marker='o',
        capsize=3,
        color=colour,
        label='measured',
      )
      if name != 'population':
        ax.plot(x, middle[-1] * x[-1] / x, ':', color='grey', label='in proportion to the last')
      ax.set(xscale='log', yscale='log', xlabel=label, title=title)
      _ticks(ax, x)
      if name == 'population':
        ax.set_ylim(middle.min() / 10, middle.max() * 10)
      _plain(ax)
      ax.legend(fontsize=9, loc='lower left')
    figure.axes[0].set_ylabel('rounds a second')
  figures.save(figure, path)


def machines(record: dict[str, Any], weak: dict[str, Any], path: pathlib.Path) -> None:
  """Draws rounds a second against devices and processes, and the efficiency of weak scaling."""
  cores = record['cores']
  with figures.canvas(12.5, 4.2) as (figure, colours):
    first, second, third = figure.subplots(1, 3)
    kinds = (
      ('devices', 'o-', 'devices of one process'),
      ('processes, whole', 's--', 'processes, examples whole'),
      ('processes, divided', 'D:', 'processes, divided'),
    )
    whole = {}
    for ax, work, title in ((first, 'M1', 'MLP, C = 48'), (second, 'W3', 'logistic, C = 480')):
      for (kind, style, label), colour in zip(kinds, colours, strict=False):
        points = series(record, f'{work} {kind}')
        if kind == 'processes, whole':
          whole[work] = points[:1]
        if kind == 'processes, divided':
          points = [*whole[work], *points]
        ax.plot(
          [p['x'] for p in points],
          [p['rounds_per_s'] for p in points],
          style,
          color=colour,
          label=label,
        )
      ax.axvspan(cores, 8.5, color='0.93', zorder=0)
      ax.set(xscale='log', title=title, xlabel='devices, or processes of one')
      ax.set_xlim(0.9, 8.5)
      ax.set_ylim(0, ax.get_ylim()[1] * 1.35)
      _ticks(ax, (1, 2, 4, 8))
      ax.text(8.3, 0, 'more than the cores ', ha='right', va='bottom', fontsize=8.5)
      ax.legend(fontsize=8.5, loc='upper right')
    first.set_ylabel('rounds a second')
    _weak(third, weak, colours)
  figures.save(figure, path)


def _weak(ax: Any, record: dict[str, Any], colours: Any) -> None:
  """Draws the efficiency of two processes with twice the clients, over one."""
  shown = efficiency(record)
  names = {work: NAMES[work] for work, _ in shown}
  for place, kind in enumerate(('whole', 'divided')):
    x = np.arange(len(names)) + (place - 0.5) * 0.38
    low, middle, high = np.array([shown[work, kind] for work in names]).T
    style = {'color': colours[1 + place], 'label': f'examples {kind}', 'capsize': 3}
    ax.bar(x, middle, 0.34, yerr=[middle - low, high - middle], ecolor='0.25', **style)
    for at, y, top in zip(x, middle, high, strict=True):
      ax.text(at, top + 0.02, f'{y:.2f}', ha='center', va='bottom', fontsize=9)
  ax.axhline(1, color='grey', linestyle=':')
  ax.set_axisbelow(True)
  ax.set_xticks(range(len(names)), list(names.values()))
  ax.set(title='weak scaling, 1 to 2 processes', ylabel='time of one / time of two')
  ax.set_ylim(0, max(1.35, ax.get_ylim()[1] * 1.3))
  ax.legend(fontsize=8.5, loc='upper right')


def efficiency(record: dict[str, Any]) -> dict[tuple[str, str], tuple[float, float, float]]:
  """Returns (work, 'whole' or 'divided') -> (least, median, most) of t(1) / t(2), turn by turn."""
  found = {}
  for work in dict.fromkeys(p['spec']['work'] for p in record['points']):
    alone = [p['median_s'] for p in series(record, work) if p['x'] == 1]
    for kind in ('whole', 'divided'):
      name = work if kind == 'whole' else f'{work} divided'
      two = [p['median_s'] for p in series(record, name) if p['x'] == 2]
      shares = np.divide(alone, two)
      found[work, kind] = tuple(float(x) for x in np.percentile(shares, (0, 50, 100)))
  return found


def sums(record: dict[str, Any], path: pathlib.Path) -> None:
  """Draws how long a round takes with each sum, over that without one, segments in turn."""
  points = record['points']
  labels = [f'{NAMES[p["spec"]["work"]]}\n{p["x"]:.0f} {p["series"].split()[-1]}' for p in points]
  ways = (('psum_over_none', 'by psum', 'o'), ('in_order_over_none', 'in the devices’ order', 's'))
  with figures.canvas(9, 3.6) as (figure, colours):
    ax = figure.subplots()
    for place, (key, label, marker) in enumerate(ways):
      x = np.arange(len(points)) + (place - 0.5) * 0.25
      low, middle, high = np.array([p[key] for p in points]).T
      errors = [middle - low, high - middle]
      ax.errorbar(
        x, middle, errors, fmt=marker, capsize=4, color=colours[place], label=label, linestyle=''
      )
      for at, y in zip(x, middle, strict=True):
        side = {'ha': ('right', 'left')[place], 'textcoords': 'offset points', 'fontsize': 9}
        ax.annotate(f'{y:.2f}', (at, y), (12 * place - 6, 3), **side)
    ax.axhline(1, color='grey', linestyle=':', label='without a sum')
    ax.set_xticks(range(len(points)), labels)
    ax.set_xlim(-0.6, len(points) - 0.3)
    ax.set(ylabel='time of a round\nover that without a sum')
    ax.set_title('median, 10th and 90th percentile of turns')
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.3 * (high - low))
    ax.legend(fontsize=9, ncols=3, loc='upper left')
  figures.save(figure, path)


def size(value: float) -> str:
  """Returns bytes in words: '47.6 MB'."""
  for unit, name in ((1e9, 'GB'), (1e6, 'MB'), (1e3, 'kB')):
    if value >= unit:
      return f'{value / unit:.3g} {name}'
  return f'{value:.0f} B'


def tables(records: dict[str, dict[str, Any]]) -> dict[str, str]:
  """Returns the tables of the page, by the names of their markers."""
  limits = series(records['limits'], 'limits')[0]['rows']
  rows = ['| part | at | formula | measured |', '|---|---|---|---|']
  for x in limits:
    rows.append(f'| {x["part"]} | {x["setting"]} | {size(x["formula"])} | {size(x["measured"])} |')
  return {
    'limits': '\n'.join([*rows, '', caption(records['limits'])]),
    'secure': secure(records['limits']),
    'growth': _growth(records['growth']),
    'sums': _sums(records['sums']),
    'machines': _machines(records['machines'], records['weak']),
  }


def secure(record: dict[str, Any]) -> str:
  """Returns the table of secure aggregation: neighbours by the bound, seconds by measurement."""
  (found,) = series(record, 'secured')
  took = {x['clients']: x for x in found['sums']}
  rows = [
    '| clients C | neighbours k | k / log₂ C | work of a client | of the server '
    '| a client sends beside its values |',
    '|---|---|---|---|---|---|',
  ]
  for x in found['degrees']:
    n, k = x['num_clients'], x['neighbours']
    cells = [f'{n:,}', str(k), f'{k / np.log2(n):.1f}']
    if n in took:
      t = took[n]
      beside = size(t['client_sent_bytes'] - t['masked_bytes'])
      cells += [f'{1e3 * t["client_s"]:.0f} ms', f'{t["server_s"]:.2g} s', beside]
    else:
      cells += ['not run'] * 3
    rows.append(f'| {" | ".join(cells)} |')
  return '\n'.join(rows)


def _ms(seconds: float) -> str:
  return f'{1e3 * seconds:,.0f}' if seconds >= 0.1 else f'{1e3 * seconds:.3g}'


def _growth(record: dict[str, Any]) -> str:
  rows = [
    '| what grows | to | rounds/s | ms a round; 10th to 90th percentile | population on the device '
    '| peak memory of the process |',
    '|---|---|---|---|---|---|',
  ]
  names = {'population': 'clients N', 'cohort': 'cohort C', 'model': 'values D'}
  for p in record['points']:
    rows.append(
      f'| {names[p["series"]]} | {p["x"]:,.0f} | {p["rounds_per_s"]:,.4g} '
      f'| {_ms(p["median_s"])}; {_ms(p["p10_s"])} to {_ms(p["p90_s"])} '
      f'| {size(p["population_bytes"])} | {size(1e6 * p["peak_rss_mb"])} |'
    )
  return '\n'.join([*rows, '', caption(record)])


def _sums(record: dict[str, Any]) -> str:
  rows = [
    '| work | D | on | ms: without a sum | by psum | in order | in order adds | over psum '
    '| exchanges of a program | one exchange, ms |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ]
  for p in record['points']:
    ms = [f'{1e3 * p[how]["median_s"]:.3g}' for how in ('none', 'psum', 'in order')]
    shares = (p[f'in_order_over_{other}'] for other in ('none', 'psum'))
    more = ([100 * (x - 1) for x in share] for share in shares)
    said = [f'{x[1]:+.0f}% ({x[0]:+.0f} to {x[2]:+.0f})' for x in more]
    where = f'{p["x"]:.0f} {p["series"].split()[-1]}'
    cells = [p['spec']['work'], f'{p["params"]:,}', where, *ms, *said]
    cells += [str(p['exchanges']), ' to '.join(f'{1e3 * x:.2g}' for x in p['exchange_s'][::2])]
    rows.append(f'| {" | ".join(cells)} |')
  return '\n'.join([*rows, '', caption(record)])


def _machines(record: dict[str, Any], weak: dict[str, Any]) -> str:
  rows = ['| work | on | 1 | 2 | 4 | 8 |', '|---|---|---|---|---|---|']
  for work in ('M1', 'W3'):
    for kind in ('devices', 'processes, whole', 'processes, divided'):
      took = {p['x']: f'{p["rounds_per_s"]:.3g}' for p in series(record, f'{work} {kind}')}
      cells = [work, kind, *(took.get(x, '–') for x in (1, 2, 4, 8))]
      rows.append(f'| {" | ".join(cells)} |')
  rows += ['', caption(record), '']
  rows.append('| weak scaling | examples | efficiency, median | least and most of the turns |')
  rows.append('|---|---|---|---|')
  for (work, kind), (low, middle, high) in efficiency(weak).items():
    rows.append(f'| {work} | {kind} | {middle:.2f} | {low:.2f} to {high:.2f} |')
  return '\n'.join([*rows, '', caption(weak)])


def caption(record: dict[str, Any]) -> str:
  """Returns on what a part was measured."""
  low, high = record['load']
  return (
    f'{record["cores"]} cores of {record["cpu"]} ({record["vectors"]}), shared: load {low} at the '
    f'start and {high} at the end; {record["date"]}, jax {record["jax"]}.'
  )


def render(text: str, made: dict[str, str]) -> str:
  """Returns a page with its tables between their markers replaced.

  Raises:
    ValueError: the page lacks a marker.
  """
  for name, table in made.items():
    begin, end = f'<!-- {name}: begin -->', f'<!-- {name}: end -->'
    if begin not in text or end not in text:
      raise ValueError(f'the page must have the lines {begin!r} and {end!r}.')
    before, rest = text.split(begin)
    text = f'{before}{begin}\n{table}\n{end}{rest.split(end)[1]}'
  return text


def show(folder: pathlib.Path, assets: pathlib.Path = ASSETS, page: pathlib.Path = PAGE) -> None:
  """Draws the pictures and writes the tables of what is in a folder of results."""
  records = load(folder)
  growth(records['growth'], assets / 'scaling-growth.png')
  machines(records['machines'], records['weak'], assets / 'scaling-machines.png')
  sums(records['sums'], assets / 'scaling-sums.png')
  page.write_text(render(page.read_text('utf-8'), tables(records)), 'utf-8')
