"""Plot of test accuracy against the bits per value of distributed noise."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedjax_mem.report import figures


def bits_and_accuracy(
  lines: Mapping[str, Mapping[int, Sequence[float]]], levels: Mapping[str, float], title: str
) -> Figure:
  """Returns a plot of test accuracy against bits per value, with a line for each label.

  Args:
    lines: label -> bits -> accuracies of several seeds, in [0, 1]; a bar spans them.
    levels: label -> accuracy to compare the line with, drawn dashed in the line's colour.
    title: title of the plot.
  """
  with figures.canvas(8, 5) as (figure, colours):
    ax = figure.add_subplot()
    for i, (label, points) in enumerate(lines.items()):
      colour = colours[i % len(colours)]
      scores = [100 * np.asarray(points[bits], float) for bits in sorted(points)]
      middle = np.array([x.mean() for x in scores])
      spans = [
        [m - x.min() for m, x in zip(middle, scores, strict=True)],
        [x.max() - m for m, x in zip(middle, scores, strict=True)],
      ]
      marker = figures.MARKERS[i % len(figures.MARKERS)]
      ax.errorbar(
        sorted(points), middle, yerr=spans, marker=marker, color=colour, capsize=3, label=label
      )
      if label in levels:
        ax.axhline(100 * levels[label], color=colour, linestyle='--', linewidth=1)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel='bits of a value', ylabel='test accuracy, %', title=title)
    ax.legend(title='dashed: noise on the server')
  return figure
