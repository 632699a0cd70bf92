"""`metrics.csv`: whole at each checkpoint; a resumed run leaves it as an uninterrupted one."""

import csv
import pathlib

from fedjax_mem.runner.trackers import About
from fedjax_mem.runner.trackers.csv import FILE, Csv


def about(folder, done=0):
  return About('a', 'id', pathlib.Path(folder), {}, 3, done)


def rows(folder):
  with (folder / FILE).open(newline='', encoding='utf-8') as file:
    return list(csv.DictReader(file))


def test_a_column_a_metric_and_a_line_a_round(tmp_path):
  tracker = Csv()
  tracker.start(about(tmp_path))
  tracker.segment([{'round': 1, 'loss': 0.1, 'ids': [1]}])
  assert not (tmp_path / FILE).exists()
  tracker.segment([{'round': 2, 'loss': 1 / 3, 'é, "x"': 1}])
  tracker.checkpoint(2)
  kept = (tmp_path / FILE).read_bytes()
  assert rows(tmp_path) == [
    {'round': '1', 'loss': '0.1', 'é, "x"': ''}, {'round': '2', 'loss': str(1 / 3), 'é, "x"': '1'}
  ]  # fmt: skip
  tracker.segment([{'round': 3, 'loss': 5.0}])
  tracker.end('failed')
  assert len(rows(tmp_path)) == 3 and [x.name for x in tmp_path.iterdir()] == [FILE]
  again = Csv()
  again.start(about(tmp_path, 2))
  again.checkpoint(2)
  assert (tmp_path / FILE).read_bytes() == kept
