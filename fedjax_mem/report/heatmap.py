"""Heat maps of scores, such as rules by attacks."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from fedjax_mem.report import figures

# (row, column) -> scores of several seeds, in [0, 1]
Cells = Mapping[tuple[str, str], Sequence[float]]


def heatmap(panels: Mapping[str, Cells], title: str, label: str = 'test accuracy, %') -> Figure:
  """Returns a heat map per panel, rows by columns, with the mean of each cell as a number.

  Rows and columns are those of the first panel, in the order of first appearance.

  Args:
    panels: title of a panel -> cells; a missing cell is left blank.
    title: title above all panels.
    label: label of the colour bar.
  """
  first = next(iter(panels.values()), {})
  rows, columns = (list(dict.fromkeys(key[i] for key in first)) for i in (0, 1))
  size = 3.2 + 0.62 * len(columns) * len(panels), 1.9 + 0.36 * len(rows)
  frame = {'axes.spines.right': True, 'axes.spines.top': True}
  settings = {'axes.grid': False, 'font.size': 9, **frame}
  with figures.canvas(*size, title, settings=settings) as (figure, _):
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    image = None
    for ax, (name, cells) in zip(axes, panels.items(), strict=True):
      values = np.full((len(rows), len(columns)), np.nan)
      for (row, column), scores in cells.items():
        values[rows.index(row), columns.index(column)] = 100 * float(np.mean(scores))
      image = ax.imshow(values, vmin=0, vmax=100, cmap='viridis', aspect='auto')
      for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
          ink = 'black' if value > 55 else 'white'
          ax.text(j, i, f'{value:.0f}', ha='center', va='center', color=ink, fontsize=8)
      ax.set_title(name, fontsize=10)
      ax.set_xticks(range(len(columns)), columns, rotation=45, ha='right')
      ax.set_yticks(range(len(rows)), rows)
      ax.tick_params(length=0)
    if image is not None:
      figure.colorbar(image, ax=axes, label=label, pad=0.01)
  return figure
