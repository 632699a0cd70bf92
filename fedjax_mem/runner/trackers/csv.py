"""`metrics.csv` in the run's folder: a line a round, a column a metric."""

import csv
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from fedjax_mem.runner.trackers._base import About, Record, Tracker

FILE = 'metrics.csv'


class Csv(Tracker):
  """Writes the numbers of all records, whole, at each checkpoint and at the end.

  Columns are known only once a metric is there, so the file is replaced, not extended. It never
  has rounds that a resumed run would repeat.
  """

  _path: pathlib.Path
  _rows: list[dict[str, Any]]

  def start(self, about: About) -> None:
    """Reads what a resumed run has written."""
    self._path, self._rows = about.folder / FILE, []
    if about.done and self._path.is_file():
      with self._path.open(newline='', encoding='utf-8') as file:
        rows = [{k: x for k, x in row.items() if x != ''} for row in csv.DictReader(file)]
      self._rows = [row for row in rows if int(row['round']) <= about.done]

  def segment(self, records: Sequence[Record]) -> None:
    """Keeps the records."""
    self._rows += [
      {k: x for k, x in r.items() if isinstance(x, str | int | float)} for r in records
    ]

  def checkpoint(self, round: int) -> None:
    """Writes the file."""
    names = list(dict.fromkeys(name for row in self._rows for name in row))
    beside = self._path.with_name(self._path.name + '.tmp')
    with beside.open('w', newline='', encoding='utf-8') as file:
      writer = csv.DictWriter(file, names or ['round'])
      writer.writeheader()
      writer.writerows(self._rows)
    os.replace(beside, self._path)

  def end(self, status: str) -> None:
    """Writes the file."""
    self.checkpoint(0)
