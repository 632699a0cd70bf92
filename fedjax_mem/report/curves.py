"""Curves of several methods in several settings: one panel for each setting."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedjax_mem.report import figures

# Round -> value in [0, 1].
Curve = Mapping[int, float]
_COLUMNS = 3


def panels(
  shown: Mapping[str, Mapping[str, Sequence[Curve]]],
  levels: Mapping[str, Mapping[str, float]],
  title: str,
  meaning: str = '',
) -> Figure:
  """Returns a figure with a panel for each setting, and in it the curve of each method.

  Of several curves of one method the mean is drawn, over the rounds that all have, and a band from
  the lowest to the highest.

  Args:
    shown: setting -> method -> one curve for each seed.
    levels: setting -> method -> a number that is drawn as a dashed line in the method's colour.
    title: above all panels.
    meaning: of the dashed lines, below all panels.
  """
  methods = list(dict.fromkeys(name for one in shown.values() for name in one))
  columns = min(_COLUMNS, len(shown))
  lines = math.ceil(len(shown) / columns)
  size = max(3.4 * columns, 5.0), 2.7 * lines + 0.9
  with figures.canvas(*size, title) as (figure, colours):
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).ravel()
    for ax, (setting, curves) in zip(axes, shown.items(), strict=False):
      for method, many in curves.items():
        colour = colours[methods.index(method) % len(colours)]
        at = sorted(set.intersection(*(set(curve) for curve in many)))
        values = np.array([[curve[r] for r in at] for curve in many])
        ax.plot(at, values.mean(0), color=colour, linewidth=1.6, label=method)
        if len(many) > 1:
          ax.fill_between(at, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
        if (level := levels.get(setting, {}).get(method)) is not None:
          ax.axhline(level, color=colour, linewidth=1, linestyle='--')
      ax.set_title(setting, fontsize=10)
      ax.set_xlabel('round')
      ax.xaxis.set_major_locator(MaxNLocator(integer=True))
      ax.yaxis.set_major_formatter(PercentFormatter(1, 0))
    for ax in axes[len(shown) :]:
      ax.set_visible(False)
    for ax in axes[::columns]:
      ax.set_ylabel('test accuracy')
    named: dict[str, Artist] = {}
    for ax in axes[: len(shown)]:
      named |= {label: line for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(
      [*named.values()],
      [*named],
      loc='outside lower center',
      ncols=max(len(named), 1),
      title=meaning if levels else None,
      fontsize=9,
    )
  return figure
