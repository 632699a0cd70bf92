"""Means over seeds with their intervals, and curves with them as bands."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedjax_mem.report import figures
from fedjax_mem.report.tables import interval

MOST = 24  # curves of one figure; with more none can be told from the others


class Band(NamedTuple):
  """A curve and its band.

  Attributes:
    rounds: where it has values.
    mean: of the seeds.
    half: half the width of the band; None: there is none.
    bold: whether the curve stands out.
  """

  rounds: Sequence[int]
  mean: Sequence[float]
  half: Sequence[float] | None
  bold: bool = False


def band(series: Sequence[Mapping[int, float]], bold: bool = False) -> Band | None:
  """Returns the curve of several seeds: at each round the interval over those that have a value.

  Args:
    series: of each seed, round -> value; values that are not finite do not count.
    bold: whether the curve stands out.
  """
  known = []
  for r in sorted({r for one in series for r in one}):
    found = interval([one[r] for one in series if math.isfinite(one.get(r, math.nan))])
    if found is not None:
      known.append((r, found))
  if not known:
    return None
  half = [math.nan if x.half is None else x.half for _, x in known]
  whole = None if all(map(math.isnan, half)) else half
  return Band([r for r, _ in known], [x.mean for _, x in known], whole, bold)


def curves(
  panels: Mapping[str, Mapping[str, Band]],
  title: str,
  notes: str = '',
  dark: bool = False,
  stacked: bool = False,
) -> Figure:
  """Returns a plot with a panel for each metric, and in it a curve with its band for each label.

  Of more than `MOST` curves those that are bold and then the first ones are drawn, which the figure
  says.

  Args:
    panels: heading of the panel -> label -> curve; a heading with 'accuracy' is drawn in per cent.
    title: above all panels.
    notes: lines below the title.
    dark: whether the background is dark.
    stacked: whether the panels are one above the other.
  """
  labels = list(dict.fromkeys(x for panel in panels.values() for x in panel))
  bold = {x for panel in panels.values() for x, band in panel.items() if band.bold}
  ranked = sorted(labels, key=lambda x: x not in bold)  # stable: else in their order
  drawn = [x for x in labels if x in ranked[:MOST]]
  left = len(labels) - len(drawn)
  said = [*notes.splitlines(), *[f'{left} of {len(labels)} points are not drawn'] * bool(left)]
  rows = -(-len(drawn) // 3)
  number = max(len(panels), 1)
  across, down = (1, number) if stacked else (number, 1)
  size = 5.2 * (1.0 if stacked else max(across, 1.6)), 3.1 * (down - 1) + 4.1 + 0.2 * rows
  with figures.canvas(*size, title, dark) as (fig, colours):
    axes = fig.subplots(down, across, squeeze=False).ravel()
    for ax, (heading, panel) in zip(axes, panels.items(), strict=False):
      for i, label in enumerate(drawn):
        if label in panel:
          _curve(ax, panel[label], i, label, colours)
      ax.set_title(heading)
      ax.set_xlabel('round')
      ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
      _limits(ax, [panel[label] for label in drawn if label in panel])
      if 'accuracy' in heading.lower():
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    handles, names = axes[0].get_legend_handles_labels()
    if handles:
      columns = 1 if stacked else min(3, len(names))
      fig.legend(handles, names, loc='outside lower center', ncols=columns, fontsize=8)
    if said:
      head = '\n'.join([figures.short(title, 100), *(figures.short(x, 150) for x in said)])
      fig.suptitle(head, fontsize=10, fontweight='bold')
  return fig


def _limits(ax: Axes, bands: Sequence[Band]) -> None:
  """Shows the means whole: with few seeds bands are so wide that curves would be flat."""
  values = np.concatenate([np.asarray(x.mean, float) for x in bands])
  values = values[np.isfinite(values)]
  if values.size:
    room = 0.15 * (values.max() - values.min()) or 0.05 * abs(values.max()) or 1.0
    ax.set_ylim(values.min() - room, values.max() + room)


def _curve(ax: Axes, band: Band, i: int, label: str, colours: Sequence[str]) -> None:
  colour = colours[i % len(colours)]
  style: Any = figures.STYLES[i // len(colours) % len(figures.STYLES)]
  at, mean = np.asarray(band.rounds), np.asarray(band.mean, float)
  width = 2.6 if band.bold else 1.4
  name = figures.short(('★ ' if band.bold else '') + label, 46)
  mean = np.where(np.isfinite(mean), mean, np.nan)
  marker = figures.MARKERS[i % len(figures.MARKERS)] if len(at) < 3 else None
  ax.plot(at, mean, color=colour, linestyle=style, linewidth=width, label=name, marker=marker)
  if band.half is not None:
    half = np.asarray(band.half, float)
    ax.fill_between(at, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
