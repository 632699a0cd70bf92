"""Plots: learning curves, partitions, contributions, privacy loss, bytes against accuracy.

Their style is that of `figures.py`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedjax_mem.report import figures
from fedjax_mem.report.runs import MAIN, Run, Source, as_runs, marked, series

_LEGEND_ROWS = 12
_BUBBLES = 60  # clients; with more, bubbles are too small to be compared
_COLUMNS = 2000  # columns of a heat map; there are no more pixels
_STEPS = (1, 2, 5, 10)  # between ticks


def learning_curves(
  sources: Source | Iterable[Source],
  title: str | None = None,
  dark: bool = False,
  stacked: bool = False,
) -> Figure:
  """Returns a plot of scores and losses against rounds; a panel without data is left out.

  The score is the task's main one, such as the accuracy: on the test set, and the mean over clients
  on what they hold out with the mean of the worst tenth of them, dashed.

  Args:
    sources: see `as_runs`.
    title: title of the figure; None = the run's name, or the number of runs.
    dark: whether the background is dark.
    stacked: whether the panels are one above the other.
  """
  runs = as_runs(sources)

  def there(*keys: str) -> bool:
    return any(series(run, key)[1] for run in runs for key in keys)

  main = next((x for x in MAIN if there(f'test_{x}')), 'accuracy')
  panels: list[Callable[[Axes, Sequence[Run], Sequence[str]], None]] = []
  panels += [partial(_score, main)] * there(f'test_{main}')
  panels += [partial(_clients, main)] * there(f'client_{main}_mean')
  panels += [_loss] * there('train_loss', 'test_loss')
  panels = panels or [_nothing]
  legend_rows = math.ceil(len(runs) / 3) if len(runs) > 1 else 0
  across, down = (1, len(panels)) if stacked else (len(panels), 1)
  legend = 0.22 * min(legend_rows, _LEGEND_ROWS)
  size = 5.2 * max(across, 1.0 if stacked else 1.25), 3.1 * (down - 1) + 3.9 + legend
  named = f'{runs[0].name}: learning curves' if len(runs) == 1 else f'{len(runs)} runs compared'
  with figures.canvas(*size, title or named, dark) as (figure, colours):
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for draw, ax in zip(panels, axes, strict=True):
      draw(ax, runs, colours)
    if len(runs) > 1:
      _legend(figure, axes[0], runs)
  return figure


def _legend(figure: Figure, ax: Axes, runs: Sequence[Run]) -> None:
  handles, labels = ax.get_legend_handles_labels()
  chosen = list(zip(handles, labels, strict=True))[: len(runs)][: 3 * _LEGEND_ROWS]
  if chosen:
    figure.legend(
      [handle for handle, _ in chosen],
      [label for _, label in chosen],
      loc='outside lower center',
      ncols=min(3, len(chosen)),
      fontsize=9,
    )


def _line(
  ax: Axes, points: tuple[Sequence[int], Sequence[float]], i: int, colour: str, **style: Any
) -> None:
  """Draws a curve with gaps where values are not finite, and a cross below the start of a gap."""
  at, values = np.asarray(points[0]), np.asarray(points[1], float)
  finite = np.isfinite(values)
  isolated = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]
  few = len(values) <= 25
  marks = np.flatnonzero(finite if few else isolated).tolist()
  shown = {
    'linewidth': 1.8,
    'marker': figures.MARKERS[i % len(figures.MARKERS)],
    'markersize': 4,
    **style,
  }
  ax.plot(at, np.where(finite, values, np.nan), color=colour, markevery=marks, **shown)
  begins = ~finite & np.r_[True, finite[:-1]]
  if begins.any():
    ax.plot(
      at[begins],
      np.zeros(begins.sum()),
      'x',
      color=colour,
      transform=ax.get_xaxis_transform(),
      clip_on=False,
      zorder=3,
      label='_not_finite',
    )


def _line_style(i: int, colours: Sequence[str]) -> Any:
  return figures.STYLES[i // len(colours) % len(figures.STYLES)]


def _scale(ax: Axes, main: str) -> None:
  ax.set_ylabel(MAIN[main])
  if main == 'accuracy':
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
  ax.yaxis.set_major_locator(MaxNLocator(steps=_STEPS, min_n_ticks=3))
  _rounds(ax)


def _score(main: str, ax: Axes, runs: Sequence[Run], colours: Sequence[str]) -> None:
  for i, run in enumerate(runs):
    points = series(run, f'test_{main}')
    colour, style = colours[i % len(colours)], _line_style(i, colours)
    _line(ax, points, i, colour, linestyle=style, label=figures.short(run.name))
  ax.set_title(marked(f'Test {MAIN[main]}', f'test_{main}', runs))
  _scale(ax, main)


def _clients(main: str, ax: Axes, runs: Sequence[Run], colours: Sequence[str]) -> None:
  for i, run in enumerate(runs):
    colour, style = colours[i % len(colours)], _line_style(i, colours)
    label = 'mean of the clients' if len(runs) == 1 else figures.short(run.name)
    _line(ax, series(run, f'client_{main}_mean'), i, colour, linestyle=style, label=label)
    worst = '_worst' if len(runs) > 1 else 'mean of the worst tenth'
    light = {'linewidth': 1.0, 'markersize': 2.5, 'linestyle': '--', 'label': worst}
    _line(ax, series(run, f'client_{main}_worst'), i, colour, **light)
  one = f'{MAIN[main][0].upper()}{MAIN[main][1:]} on what clients hold out'
  title = one if len(runs) == 1 else 'Clients: mean (bold), worst tenth (thin, dashed)'
  ax.set_title(marked(title, f'client_{main}_mean', runs))
  _scale(ax, main)
  if len(runs) == 1:
    ax.legend()


def _loss(ax: Axes, runs: Sequence[Run], colours: Sequence[str]) -> None:
  values: list[float] = []
  for i, run in enumerate(runs):
    train, test = series(run, 'train_loss'), series(run, 'test_loss')
    both = bool(train[1] and test[1])
    colour = colours[i % len(colours)]
    label = figures.short(run.name) if len(runs) > 1 else None
    # With one run, colours distinguish test from train; with several runs, line widths do.
    if train[1]:
      light = {'linewidth': 1.0, 'alpha': 0.6, 'markersize': 2.5} if both else {}
      own = colours[1] if both and len(runs) == 1 else colour
      solid = {'linestyle': '--' if both else _line_style(i, colours)}
      hidden = '_' if both and label else label
      clients = marked('training clients', 'train_loss', [run])
      _line(ax, train, i + 1, own, label=hidden or clients, **solid, **light)
    if test[1]:
      held = marked('test set', 'test_loss', [run])
      _line(ax, test, i, colour, linestyle=_line_style(i, colours), label=label or held)
    values += [x for x in (*train[1], *test[1]) if math.isfinite(x)]
  bold, thin = marked('test', 'test_loss', runs), marked('training clients', 'train_loss', runs)
  between = '\n' if len(bold) + len(thin) > 24 else ' '  # what a claim does not cover is said
  several = f'Loss: {bold} (bold),{between}{thin} (thin, dashed)'
  ax.set_title('Loss' if len(runs) == 1 else several)
  ax.set_ylabel('loss')
  _rounds(ax)
  if values and min(values) > 0 and max(values) / min(values) > 100:
    ax.set_yscale('log')
  if len(runs) == 1:
    ax.legend()


def _rounds(ax: Axes) -> None:
  broken = any(line.get_label() == '_not_finite' for line in ax.lines)
  ax.set_xlabel('round' + (' (×: not finite from here on)' if broken else ''))
  ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=_STEPS, min_n_ticks=1))


def _nothing(ax: Axes, runs: Sequence[Run], colours: Sequence[str]) -> None:
  del runs, colours
  ax.text(0.5, 0.5, 'no losses or accuracies recorded', ha='center', transform=ax.transAxes)
  ax.set_axis_off()


def partition(
  counts: Any, labels: Sequence[str] | None = None, title: str | None = None, dark: bool = False
) -> Figure:
  """Returns a plot of a partition: clients × labels, and the number of examples of each client.

  Up to 60 clients are drawn as bubbles whose areas are numbers of examples, more clients as a heat
  map. Of more than 2000 clients every second, third, … one is drawn.

  Args:
    counts: [N, K] number of examples of each label that each client holds, >= 0.
    labels: names of the K labels; None = their numbers.
    title: title of the figure.
    dark: whether the background is dark.

  Raises:
    ValueError: `counts` is not such a table, or `labels` does not fit it.
  """
  counts = np.asarray(counts)
  if counts.ndim != 2 or not counts.size or (counts < 0).any():
    raise ValueError(
      f'counts must be a table [clients, labels] of numbers >= 0, got shape {counts.shape}.'
    )
  clients, classes = counts.shape
  if labels is not None and len(labels) != classes:
    raise ValueError(f'labels must be {classes} names, got {len(labels)}.')
  height = 2.6 + 0.24 * min(max(classes, 4), 30)
  sizes = f'{clients:,} clients, {int(counts.sum()):,} examples'
  whole = f'{title}: {sizes}' if title else sizes
  with figures.canvas(9.5, height, whole, dark, {'axes.grid': False}) as (figure, (colour, *_)):
    above, ax = figure.subplots(2, 1, sharex=True, height_ratios=(1, max(height - 2.2, 1.6)))
    step = -(-clients // _COLUMNS)
    seen = counts[::step]
    if clients <= 200:
      above.bar(np.arange(clients), seen.sum(1), width=0.8, color=colour)
    else:  # one patch instead of thousands: it is drawn faster
      above.stairs(seen.sum(1), step * np.arange(len(seen) + 1) - 0.5, fill=True, color=colour)
    above.set_ylabel('examples')
    above.tick_params(bottom=False)
    if clients <= _BUBBLES:
      _bubbles(figure, ax, counts, colour)
    else:
      _heat(figure, ax, seen, step, dark)
    ax.set_xlabel('client' if step == 1 else f'client (one of {step} is shown)')
    ax.set_ylabel('label')
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, steps=_STEPS, min_n_ticks=1))
    if classes <= 30:
      names = labels if labels is not None else range(classes)
      ax.set_yticks(range(classes), [figures.short(str(x), 20) for x in names])
    ax.set_xlim(-0.7, clients - 0.3)
    ax.set_ylim(-0.7, classes - 0.3)
  return figure


def _bubbles(figure: Figure, ax: Axes, counts: np.ndarray, colour: str) -> None:
  clients, classes = counts.shape
  width, height = figure.get_size_inches() * 72  # points
  room = min(0.85 * width / clients, 0.6 * height / max(classes, 3), 26)
  at, label = np.nonzero(counts)
  size = counts[at, label] / max(counts.max(), 1) * room**2
  ax.scatter(at, label, s=size, color=colour, alpha=0.8, linewidths=0)
  ax.set_axisbelow(True)
  ax.grid(True, linewidth=0.5)
  ax.set_title(f'area of a bubble: examples (the largest: {counts.max():,})', fontsize=9)


def _heat(figure: Figure, ax: Axes, counts: np.ndarray, step: int, dark: bool) -> None:
  most = int(counts.max())
  seen = np.ma.masked_equal(counts.T, 0)
  scale = LogNorm(1, most) if most >= 100 else None
  image = ax.imshow(
    seen, extent=(-0.5, step * len(counts) - 0.5, -0.5, counts.shape[1] - 0.5),
    aspect='auto', origin='lower', cmap='cividis' if dark else 'cividis_r', norm=scale,
    vmin=None if scale else 0, interpolation='nearest',
  )  # fmt: skip
  figure.colorbar(image, ax=ax, label='examples', pad=0.01)


def contributions(
  scores: Sequence[float] | np.ndarray,
  rounds: Sequence[int] | np.ndarray,
  title: str | None = None,
  dark: bool = False,
) -> Figure:
  """Returns a bar plot of the clients' contribution scores, in the order of their ids.

  Args:
    scores: [N], mean of a client's contributions over its rounds.
    rounds: [N], number of these rounds; 0: the client has no score and no bar.
    title: title of the plot.
    dark: whether the background is dark.
  """
  scores, rounds = np.asarray(scores, float), np.asarray(rounds)
  known = np.flatnonzero(rounds > 0)
  with figures.canvas(8.5, 4, dark=dark) as (figure, colours):
    ax = figure.add_subplot()
    shown = [colours[0] if x >= 0 else colours[1] for x in scores[known]]
    ax.bar(known, scores[known], color=shown, width=0.8)
    ax.axhline(0, linewidth=1, color='grey')
    ax.set_axisbelow(True)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(
      xlabel=f'client ({len(known)} of {len(scores)} have a score)',
      ylabel='fall of the validation loss, mean',
      xlim=(-0.6, len(scores) - 0.4),
    )
    ax.set_title(title or 'Contribution of each client')
  return figure


def epsilon(
  curves: Mapping[str, Sequence[float]], title: str | None = None, dark: bool = False
) -> Figure:
  """Returns a plot of ε against rounds, with the bounds of the privacy levels (1, 5 and 10).

  Args:
    curves: label -> ε after rounds 1, 2, …
    title: title of the plot.
    dark: whether the background is dark.
  """
  with figures.canvas(7.5, 4.5, dark=dark) as (figure, colours):
    ax = figure.add_subplot()
    for i, (label, values) in enumerate(curves.items()):
      rounds = range(1, len(values) + 1)
      ax.plot(rounds, values, label=figures.short(label), color=colours[i % len(colours)])
    top = max((max(values) for values in curves.values() if len(values)), default=1.0)
    for bound, level in ((1, 'strong'), (5, 'moderate'), (10, 'weak')):
      if bound <= 1.2 * top:
        ax.axhline(bound, linestyle=':', linewidth=1, color='grey')
        ax.annotate(
          f'{level} up to {bound}',
          (1, bound),
          xycoords=('axes fraction', 'data'),
          ha='right',
          va='bottom',
          fontsize='small',
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel='round', ylabel='ε', ylim=(0, None))
    ax.set_title(title or 'Privacy loss')
    if len(curves) > 1:
      ax.legend()
    return figure


def tradeoff(
  points: Mapping[str, tuple[float, Sequence[float]]], title: str | None = None, dark: bool = False
) -> Figure:
  """Returns a plot of test accuracy against bytes (logarithmic), with one point for each label.

  Args:
    points: label -> (bytes of a client's message, accuracies of several seeds); a bar spans the
      lowest and the highest accuracy.
    title: title of the plot.
    dark: whether the background is dark.
  """
  with figures.canvas(8.5, 5, dark=dark) as (figure, colours):
    ax = figure.add_subplot()
    for i, (label, (size, values)) in enumerate(points.items()):
      scores = 100 * np.asarray(values)
      middle = scores.mean()
      ax.errorbar(
        [size],
        [middle],
        yerr=[[middle - scores.min()], [scores.max() - middle]],
        fmt=figures.MARKERS[i % len(figures.MARKERS)],
        color=colours[i % len(colours)],
        capsize=3,
        label=figures.short(label),
      )
    ax.set_xscale('log')
    ax.set(xlabel="bytes of a client's message (logarithmic)", ylabel='test accuracy, %')
    ax.set_title(title or 'Bytes and accuracy')
    figure.legend(loc='outside right center', fontsize=9)
  return figure
