"""Metrics files: strict lines, torn ends, cutting back for a resumed run."""

import csv
import json
import math

import numpy as np
import pytest

from fedjax_mem.report import MetricsWriter, read_metrics, truncate_after, write_csv
from fedjax_mem.report.tracker import missing, reach


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'run' / 'metrics.jsonl'


def write(path, rounds):
  with MetricsWriter(path) as writer:
    for r in rounds:
      writer.write({'round': r, 'train_loss': 1 / r})


def test_records_come_back_equal(path):
  record = {
    'round': 1,
    'train_loss': np.float32(0.1),
    'examples': np.int64(3),
    'not_finite': np.array([2, -1]),
    'layer/name': 'é\n',
    'nested': {'a': (1, 2)},
    'ok': np.True_,
    'none': None,
  }
  with MetricsWriter(path) as writer:
    writer.write(record)
  assert read_metrics(path) == [
    {
      'round': 1, 'train_loss': float(np.float32(0.1)), 'examples': 3, 'not_finite': [2, -1],
      'layer/name': 'é\n', 'nested': {'a': [1, 2]}, 'ok': True, 'none': None,
    }
  ]  # fmt: skip


def test_numbers_that_are_not_finite_are_strict_json(path):
  with MetricsWriter(path) as writer:
    writer.write({'a': math.nan, 'b': np.float32(math.inf), 'c': np.array([-math.inf, 1])})

  def no_constants(name):
    raise AssertionError(name)

  line = path.read_text()
  assert json.loads(line, parse_constant=no_constants) == {
    'a': 'NaN',
    'b': 'Infinity',
    'c': ['-Infinity', 1.0],
  }
  (record,) = read_metrics(path)
  assert math.isnan(record['a']) and record['b'] == math.inf and record['c'] == [-math.inf, 1]


def test_a_record_is_in_the_file_when_write_returns(path):
  writer = MetricsWriter(path)
  writer.write({'round': 1})
  assert read_metrics(path) == [{'round': 1}]
  writer.close()
  writer.close()


def test_a_file_is_appended_to(path):
  write(path, [1, 2])
  write(path, [3])
  assert [record['round'] for record in read_metrics(path)] == [1, 2, 3]


@pytest.mark.parametrize('cut', range(1, 24))
def test_a_torn_last_line_is_left_out_wherever_it_is_cut(path, cut):
  write(path, [1, 2])
  whole = path.read_bytes()
  path.write_bytes(whole[:-cut])
  # Without its newline alone, the record is still all there.
  kept = [1, 2] if cut == 1 else [1]
  assert [record['round'] for record in read_metrics(path)] == kept
  write(path, range(kept[-1] + 1, 4))
  assert [record['round'] for record in read_metrics(path)] == [1, 2, 3]
  assert path.read_bytes().startswith(whole)


def test_a_tail_of_zeros_is_torn_too(path):
  write(path, [1])
  with path.open('ab') as file:
    file.write(bytes(100))
  assert [record['round'] for record in read_metrics(path)] == [1]


def test_a_damaged_middle_is_refused_with_its_line(path):
  write(path, [1, 2, 3])
  lines = path.read_text().splitlines()
  path.write_text('\n'.join([lines[0], '{"round": 2,', lines[2]]) + '\n')
  with pytest.raises(ValueError, match='line 2, must be a JSON object'):
    read_metrics(path)
  path.write_text('7\n{"round": 1}\n')
  with pytest.raises(ValueError, match='line 1, must be a JSON object'):
    read_metrics(path)


def test_an_empty_file_has_no_records(path):
  MetricsWriter(path).close()
  assert read_metrics(path) == []


@pytest.mark.parametrize(('last', 'kept'), [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_cutting_back_keeps_the_rounds_up_to_a_checkpoint(path, last, kept):
  write(path, [1, 2, 3])
  with path.open('a') as file:
    file.write('{"round": 4, "tr')
  lines = path.read_text().splitlines()
  records = truncate_after(path, last)
  assert [record['round'] for record in records] == kept
  assert path.read_text().splitlines() == lines[: len(kept)]
  assert [x.name for x in path.parent.iterdir()] == [path.name]


def test_records_that_were_put_in_another_order_are_in_order_again(path):
  write(path, [3, 1, 2, -1])
  assert [record['round'] for record in truncate_after(path, 3)] == [1, 2, 3]
  assert [record['round'] for record in read_metrics(path)] == [1, 2, 3]


def test_cutting_back_nothing(path):
  assert truncate_after(path, 3) == []
  assert not path.exists()


def test_csv_has_a_column_for_every_key(tmp_path):
  records = [{'round': 1, 'train_loss': 0.5}, {'round': 2, 'a,"b': [1, 2], 'train_loss': math.nan}]
  write_csv(tmp_path / 'x.csv', records)
  with (tmp_path / 'x.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert rows == [
    {'round': '1', 'train_loss': '0.5', 'a,"b': ''},
    {'round': '2', 'train_loss': 'NaN', 'a,"b': '[1, 2]'},
  ]


@pytest.mark.parametrize(
  ('rounds', 'end', 'words'),
  [([1, 2, 3], 3, ''), ([], 0, '1 to 3'), ([2, 3], 0, '1'), ([1, 3], 1, '2'), ([1], 1, '2 to 3')],
)
def test_how_far_records_reach_and_what_they_lack(rounds, end, words):
  records = [{'round': x} for x in rounds]
  assert reach(records) == end and missing(records, 3) == words


def test_a_record_without_a_round_is_none(path):
  path.parent.mkdir()
  path.write_text('{"round": 1}\n{"loss": 2}\n{"round": "2"}\n{"round": true}\n')
  assert reach(read_metrics(path)) == 1
  assert truncate_after(path, 5) == [{'round': 1}]


def test_a_synced_record_is_on_the_disk(path, monkeypatch):
  synced = []
  monkeypatch.setattr('os.fsync', synced.append)
  with MetricsWriter(path) as writer:
    writer.write({'round': 1})
    writer.sync()
    assert synced == [writer._file.fileno()]
