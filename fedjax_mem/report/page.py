"""The pieces of a page: cells and tables, pictures for a light and a dark theme, sections."""

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from fedjax_mem.report import figures
from fedjax_mem.report.runs import Run
from fedjax_mem.report.tables import show


class Cell(NamedTuple):
  """One cell: its text, whether it is a heading, whether it is code, and its CSS classes."""

  text: str
  head: bool = False
  code: bool = False
  kind: str = ''


class Row(NamedTuple):
  """One line, and whether its values differ from run to run."""

  cells: list[Cell]
  differs: bool = False


class Table(NamedTuple):
  """A table: headings of its columns, and its lines."""

  heads: list[str]
  rows: list[Row]


class Picture(NamedTuple):
  """A picture as data URIs.

  Attributes:
    light: on a light background.
    dark: on a dark one.
    alt: what it shows, in words.
    narrow: (light, dark) for a narrow window; (): the same.
  """

  light: str
  dark: str
  alt: str
  narrow: tuple[str, ...] = ()


class Section(NamedTuple):
  """A part of a page, with its heading; it may have a picture, sentences and a table.

  Attributes:
    key: its anchor.
    title: its heading.
    picture: is shown first.
    lines: sentences, one a line.
    table: is shown last.
  """

  key: str
  title: str
  picture: Picture | None = None
  lines: Sequence[str] = ()
  table: Table | None = None


def data(image: bytes) -> str:
  """Returns a PNG as a data URI."""
  return 'data:image/png;base64,' + base64.b64encode(image).decode()


def picture(
  draw: Callable[[bool], Figure | None],
  alt: str,
  narrow: Callable[[bool], Figure | None] | None = None,
) -> Picture | None:
  """Returns the picture that is drawn for each theme; None if there is nothing to draw.

  Args:
    draw: dark -> figure.
    alt: what it shows, in words.
    narrow: as `draw`, for a narrow window; None: the same.
  """
  light, dark = _themes(draw)
  return Picture(light, dark, alt, _themes(narrow) if narrow else ()) if light else None


def _themes(draw: Callable[[bool], Figure | None]) -> tuple[str, str]:
  light, dark = draw(False), draw(True)
  if light is None or dark is None:
    return '', ''
  return data(figures.png(light, 110)), data(figures.png(dark, 110, like=light))


def facts(pairs: Sequence[tuple[str, str]]) -> Table:
  """Returns a table with a line for each (name, text)."""
  return Table(['', 'value'], [Row([Cell(k, head=True), Cell(x, kind='n')]) for k, x in pairs])


def columns(
  runs: Sequence[Run], values: Sequence[Mapping[str, Any]], mark: Sequence[str] = ()
) -> Table | None:
  """Returns a table with a line per key and a column per run, or None if there are no keys.

  Args:
    runs: name the columns, if there are several.
    values: of each run, by keys.
    mark: keys whose lines are marked: their values differ.
  """
  keys = list(dict.fromkeys(key for column in values for key in column))
  if not keys:
    return None
  lines = []
  for key in keys:
    cells = [Cell(show(column.get(key))) for column in values]
    lines.append(Row([Cell(key, head=True, code=True), *cells], key in mark))
  return Table(['', *([run.name for run in runs] if len(runs) > 1 else ['value'])], lines)


def size(count: float) -> str:
  """Returns a number of bytes such as '38.5 MB'.

  >>> size(38_500_000), size(999)
  ('38.5 MB', '999 B')
  """
  by, unit = in_bytes(count)
  return f'{count / by:.0f} B' if unit == 'B' else f'{count / by:,.1f} {unit}'


def in_bytes(count: float) -> tuple[float, str]:
  """Returns (the divisor, the unit) in which a number of bytes is from 1 to 1,000.

  >>> in_bytes(38_500_000)
  (1000000.0, 'MB')
  """
  units, by = ('B', 'kB', 'MB', 'GB', 'TB'), 1.0
  while count >= 1000 * by and by < 1e12:
    by *= 1000
  return by, units[len(str(int(by))) // 3]


def duration(seconds: float) -> str:
  """Returns a time as '0.025 s', '42.0 s', '3 min 05 s' or '2 h 07 min'."""
  if seconds < 0.95:
    return f'{seconds:.2g} s'
  if seconds < 60:
    return f'{seconds:.1f} s'
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {rest:02d} s'
  return f'{minutes // 60} h {minutes % 60:02d} min'
