"""Plots of one aspect of runs: what was sent, the privacy loss, how single clients fare."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedjax_mem.report import figures, page, plots
from fedjax_mem.report.runs import Run, marked, series


def sent(run: Run) -> np.ndarray:
  """Returns the bytes that were sent until the end of each record's round, up and down, [R]."""
  each = [float(r.get('bytes_up', 0)) + float(r.get('bytes_down', 0)) for r in run.records]
  return np.cumsum(each)


def traffic(runs: Sequence[Run], key: str = 'test_accuracy', dark: bool = False) -> Figure | None:
  """Returns a plot of a score against all bytes sent until then; None if a run has no such points.

  Args:
    runs: the runs, one curve each.
    key: the score, a key of records.
    dark: whether the background is dark.
  """
  points = [(run, *_against_bytes(run, key)) for run in runs]
  points = [x for x in points if len(x[1])]
  if not points:
    return None
  by, unit = page.in_bytes(max(at.max() for _, at, _ in points))
  with figures.canvas(7.5, 3.6, dark=dark) as (figure, colours):
    ax = figure.add_subplot()
    for i, (run, at, values) in enumerate(points):
      style: Any = {'marker': figures.MARKERS[i % len(figures.MARKERS)], 'markersize': 3}
      label = figures.short(run.name)
      ax.plot(at / by, values, color=colours[i % len(colours)], label=label, **style)
    ax.set(xlabel=f'sent to and by all clients until then, {unit}', ylabel=_words(key))
    ax.set_title(marked(f'{_words(key)} against bytes', 'bytes_up', runs))
    _per_cent(ax, key)
    if len(points) > 1:
      ax.legend(fontsize=9)
  return figure


def _against_bytes(run: Run, key: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns (bytes sent until then, values) of the records that have a finite value."""
  total = sent(run)
  if not len(total) or not total[-1]:
    return np.zeros(0), np.zeros(0)
  values = np.array([r.get(key, np.nan) for r in run.records], float)
  there = np.isfinite(values)
  return total[there], values[there]


def spent(run: Run, dark: bool = False) -> Figure | None:
  """Returns the plot of a run's epsilon by round; None if its records have none."""
  rounds, values = series(run, 'epsilon')
  if not rounds:
    return None
  delta = run.settings.get('privacy.delta')
  title = 'Privacy loss' if delta is None else f'Privacy loss at δ = {delta:g}'
  return plots.epsilon({'after each round': values}, title, dark)


def fairness(
  scores: Sequence[float], name: str = 'accuracy', title: str | None = None, dark: bool = False
) -> Figure:
  """Returns a plot of the clients' scores, from the worst to the best, with mean and worst tenth.

  Args:
    scores: [n], the mean of each client that holds examples out.
    name: what they are; a loss is worst where it is largest.
    title: title of the plot.
    dark: whether the background is dark.

  Raises:
    ValueError: there are none.
  """
  if not len(scores):
    raise ValueError('scores must be of at least one client, got none.')
  ordered = np.sort(np.asarray(scores, float))
  if name == 'loss':
    ordered = ordered[::-1]
  worst = -(-len(ordered) // 10)
  with figures.canvas(7.5, 3.8, dark=dark) as (figure, colours):
    ax = figure.add_subplot()
    at = np.arange(len(ordered) + 1)
    for first, last, colour, who in (
      (0, worst, colours[1], f'worst tenth ({worst}): mean {ordered[:worst].mean():.3g}'),
      (worst, len(ordered), colours[0], f'the other {len(ordered) - worst}'),
    ):
      if last > first:
        ax.stairs(ordered[first:last], at[first : last + 1], fill=True, color=colour, label=who)
    mean = ordered.mean()
    ax.axhline(mean, linestyle='--', linewidth=1.2, color='grey', label=f'mean {mean:.3g}')
    ax.set(xlabel='clients, from the worst to the best', ylabel=_words(name), xlim=(0, at[-1]))
    ax.set_axisbelow(True)
    ax.set_ylim(0, max(1.0, ordered.max()) if name == 'accuracy' else None)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    _per_cent(ax, name)
    ax.set_title(title or f'{_words(name)} on what each client holds out')
    figure.legend(loc='outside lower center', ncols=3, fontsize=9)
  return figure


def _words(key: str) -> str:
  words = key.removeprefix('client_').replace('_', ' ')
  return words[:1].upper() + words[1:]


def _per_cent(ax: Axes, key: str) -> None:
  if 'accuracy' in key:
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
