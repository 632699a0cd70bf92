"""The style of all figures, and writing figures to files.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; line styles
and markers differ too. Matplotlib's global state stays as it is, but for its style while a figure
is drawn.
"""

import contextlib
import io
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import LayoutEngine

COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
DARK_COLOURS = ('#56B4E9', '#E69F00', '#2BC79A', '#E8A5C8', '#F0E442', '#FF8A4C')
STYLES = ('-', '--', '-.', ':')
MARKERS = 'osD^vPX*'


def colours(dark: bool = False) -> tuple[str, ...]:
  """Returns the colours of curves, on a light or a dark background."""
  return DARK_COLOURS if dark else COLOURS


def style(dark: bool = False) -> Any:
  """Returns matplotlib's settings for every figure, as an argument of `rc_context`."""
  ink, paper, grid = ('#d8dce2', '#16191d', '#3a4048') if dark else ('#222222', 'white', '#d9d9d9')
  return {
    'axes.edgecolor': ink,
    'axes.facecolor': paper,
    'axes.grid': True,
    'axes.prop_cycle': cycler(color=colours(dark)),
    'axes.labelcolor': ink,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlesize': 11,
    'axes.titleweight': 'bold',
    'figure.facecolor': paper,
    'font.size': 10,
    'grid.color': grid,
    'legend.frameon': False,
    'text.color': ink,
    'text.parse_math': False,  # a '$' in a name is no formula
    'xtick.color': ink,
    'ytick.color': ink,
  }


class Shown(Figure):
  """A figure that a notebook shows at the end of a cell, whether or not pyplot is imported."""

  def _repr_png_(self) -> bytes:
    return png(self)


def png(figure: Figure, dpi: int = 130, like: Figure | None = None) -> bytes:
  """Returns a figure as PNG; the same figure gives the same bytes.

  Args:
    figure: the figure.
    dpi: dots per inch.
    like: a figure of the same panels and texts in other colours, of which a PNG was just made: each
      has the place that it has there.
  """
  file, canvas, before = io.BytesIO(), FigureCanvasAgg(figure), figure.dpi
  engine = figure.get_layout_engine()
  figure.dpi = dpi
  try:
    if engine is not None:
      _lay_out(figure, engine, like)
      figure.set_layout_engine('none')
    # `savefig` draws twice where there is a layout; here it is settled.
    canvas.print_png(file, metadata={'Software': None})  # type: ignore[no-untyped-call]
  finally:
    figure.dpi = before
    figure.set_layout_engine(engine)
    for panel in figure.axes:
      panel.set_in_layout(True)  # as before it got its place
  return file.getvalue()


def _lay_out(figure: Figure, engine: LayoutEngine, like: Figure | None) -> None:
  """Settles where the panels of a figure are; that takes as long as drawing it."""
  if like is None or [len(like.axes), len(like.texts)] != [len(figure.axes), len(figure.texts)]:
    engine.execute(figure)
    return
  for panel, other in zip(figure.axes, like.axes, strict=True):
    panel.set_position(other.get_position())
  for text, other_text in zip(figure.texts, like.texts, strict=True):
    text.set_position(other_text.get_position())


def svg(figure: Figure) -> bytes:
  """Returns a figure as SVG, its text as text."""
  file = io.BytesIO()
  FigureCanvasAgg(figure)
  with matplotlib.rc_context({'svg.hashsalt': 'fedjax_mem', 'svg.fonttype': 'none'}):
    figure.savefig(file, format='svg', metadata={'Date': None, 'Creator': None})
  return file.getvalue()


def save(figure: Figure, path: str | os.PathLike[str], like: Figure | None = None) -> pathlib.Path:
  """Writes a figure as PNG, or SVG by the name, and returns the path; its folder is made.

  Args:
    figure: the figure.
    path: of the file.
    like: see `png`.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(svg(figure) if path.suffix == '.svg' else png(figure, like=like))
  return path


@contextlib.contextmanager
def canvas(
  width: float, height: float, title: str = '', dark: bool = False, settings: Any = ()
) -> Iterator[tuple[Figure, tuple[str, ...]]]:
  """Yields (an empty figure, the colours of its curves); what is drawn in it has the one style.

  Args:
    width: in inches.
    height: in inches.
    title: above all panels, cut to one line.
    dark: light ink on dark paper.
    settings: of matplotlib, a mapping of those that differ from `style`.
  """
  with matplotlib.rc_context(style(dark) | dict(settings)):
    figure = Shown(figsize=(width, height), layout='constrained')
    if title:
      figure.suptitle(short(title, 100), fontweight='bold')
    yield figure, colours(dark)


def short(text: str, length: int = 40) -> str:
  """Returns a label of at most `length` characters, without line breaks."""
  text = ' '.join(text.split())
  return text if len(text) <= length else text[: length - 1] + '…'
