"""Tables: summaries, the three styles, means and deviations over seeds."""

import csv
import io
import math

import pytest

from fedjax_mem.report import Run, format_table, over_seeds, runs_table, seeds_table, summarise
from fedjax_mem.report.tables import FURTHER, OF_CLIENTS, differing_keys

RECORDS = [
  {'round': 1, 'train_loss': 2.0, 'clients': 10, 'examples': 100, 'seconds': 0.5},
  {'round': 2, 'train_loss': 1.5, 'clients': 10, 'examples': 120, 'seconds': 0.25,
   'test_loss': 1.2, 'test_accuracy': 0.7},
  {'round': 3, 'train_loss': 1.0, 'clients': 9, 'examples': 90, 'seconds': 0.25,
   'test_loss': 1.1, 'test_accuracy': 0.6},
]  # fmt: skip


def seeded(seed, accuracy, optimizer='sgd', rounds=1, **more):
  config = {
    'name': f'{optimizer}-{seed}', 'seed': seed, 'rounds': 1,
    'server': {'optimizer': optimizer}, 'execution': {'chunk': seed}, **more,
  }  # fmt: skip
  records = [{'round': r, 'test_accuracy': accuracy} for r in range(1, rounds + 1)]
  return Run(name=f'{optimizer}-{seed}', records=records, config=config)


def test_a_summary():
  assert summarise(Run(name='x', records=RECORDS)) == {
    'run': 'x', 'rounds': 3, 'final_accuracy': 0.6, 'best_accuracy': 0.7, 'best_round': 2,
    'test_loss': 1.1, 'train_loss': 1.0, 'clients': 29, 'examples': 310, 'bytes_up': None,
    'bytes_down': None, 'seconds': 1.0,
    'rounds_per_s': 3.0, **dict.fromkeys((*OF_CLIENTS, *FURTHER)),
  }  # fmt: skip


def test_the_clients_accuracies_are_the_last_recorded():
  one = [{'round': 1, 'client_accuracy_mean': 0.5, 'client_accuracy_worst': 0.25}]
  two = [*one, {'round': 2, 'client_accuracy_mean': 0.75}, {'round': 3}]
  summary = summarise(Run(name='x', records=two))
  assert [summary[key] for key in OF_CLIENTS] == [0.75, None, 0.25, None]


def test_the_first_of_equal_bests_is_named_and_nan_is_never_best():
  accuracies = [math.nan, 0.5, 0.8, 0.8, math.nan]
  records = [{'round': i, 'test_accuracy': a} for i, a in enumerate(accuracies, 1)]
  summary = summarise(Run(name='x', records=records))
  assert (summary['best_accuracy'], summary['best_round']) == (0.8, 3)
  assert math.isnan(summary['final_accuracy'])


def test_a_summary_of_nothing():
  summary = summarise(Run(name='x', records=[]))
  assert summary['rounds'] == 0
  assert {value for key, value in summary.items() if key not in ('run', 'rounds')} == {None}


def test_the_styles():
  rows = [{'run': 'a|b', 'x': 0.123456, 'none': None}, {'run': 'c\nd', 'y': 12345}]
  assert format_table(rows) == 'run  x       y\na|b  0.1235  –\nc d  –       12,345\n'
  assert format_table(rows, 'markdown') == (
    '| run | x | y |\n| --- | --- | --- |\n| a\\|b | 0.1235 | – |\n| c d | – | 12,345 |\n'
  )
  read = list(csv.DictReader(io.StringIO(format_table(rows, 'csv'))))
  assert read == [{'run': 'a|b', 'x': '0.123456', 'y': ''}, {'run': 'c\nd', 'x': '', 'y': '12345'}]
  with pytest.raises(ValueError, match=r"style must be one of .*, got 'latex'"):
    format_table(rows, 'latex')


def test_columns_are_aligned_by_cells_of_a_terminal():
  """A wide character takes two, an accent of its own none."""
  rows = [{'name': '連合学習', 'x': 1}, {'name': 'e\u0301te\u0301', 'x': 2}, {'name': 'ε', 'x': 3}]
  assert format_table(rows) == ('name      x\n連合学習  1\ne\u0301te\u0301       2\nε         3\n')


def test_a_table_of_runs_leaves_out_what_none_has():
  text = runs_table([Run(name='a', records=[{'round': 1, 'train_loss': 2.0}]), RECORDS[:1]])
  assert text.splitlines()[0].split() == [
    'run', 'rounds', 'train_loss', 'clients', 'examples', 'seconds', 'rounds_per_s'
  ]  # fmt: skip


def test_means_over_seeds():
  runs = [seeded(0, 0.8), seeded(1, 0.9), seeded(2, 0.85), seeded(0, 0.7, 'fedadam')]
  first, second = over_seeds(runs)
  assert first['runs'] == 3 and second['runs'] == 1
  assert first['mean'] == pytest.approx(0.85)
  # Of the sample: sqrt((0.05² + 0.05² + 0) / 2).
  assert first['deviation'] == pytest.approx(0.05)
  assert second['deviation'] is None
  assert [row['server.optimizer'] for row in (first, second)] == ['sgd', 'fedadam']
  table = seeds_table(runs, style='markdown', scale=100)
  assert '| sgd-0 | sgd | 3 | 85.00 ± 5.00 |' in table
  assert '| fedadam-0 | fedadam | 1 | 70.00 |' in table


def test_a_seed_counts_once_and_an_unfinished_run_not_at_all():
  unfinished = seeded(3, 0.1, rounds=0)
  (row,) = over_seeds([seeded(0, 0.8), seeded(0, 0.8), seeded(1, 0.9), unfinished])
  assert (row['runs'], row['mean']) == (2, pytest.approx(0.85))


def test_records_without_a_configuration_are_sets_of_their_own():
  rows = over_seeds([[{'round': 1, 'test_accuracy': 0.5}], [{'round': 1, 'test_accuracy': 0.6}]])
  assert [row['runs'] for row in rows] == [1, 1]


def test_keys_that_differ():
  a = Run(name='a', records=[], config={'x': {'y': 1, 'z': 2}, 'only': 3})
  b = Run(name='b', records=[], config={'x': {'y': 1, 'z': 4}, 'new': 5})
  assert differing_keys([a, b]) == ['x.z', 'only', 'new']
  assert differing_keys([a, a]) == []


def test_text_is_written_in_a_notebook_as_well_and_nothing_is_cut(monkeypatch):
  monkeypatch.setattr('rich.console._is_jupyter', lambda: True)
  rows = [{'a': 'x' * 12_000, 'b': 'last'}]
  head, line = format_table(rows, 'text').splitlines()
  assert head.split() == ['a', 'b'] and line.split() == ['x' * 12_000, 'last']
