"""Published numbers beside ours: differences, warnings, files."""

import csv
import io
import json

import pytest

from fedjax_mem.studies import beside, niid_bench
from fedjax_mem.studies.cells import Number

TABLE = niid_bench.TABLE


def cell(method='fedavg', partition='iid', accuracy=0.89, seed=42, commit='a' * 40, rounds=50):
  curve = {'1': accuracy / 2, '2': None, '3': accuracy}
  return {
    'method': method, 'partition': partition, 'seed': seed, 'rounds': rounds,
    'best_accuracy': accuracy, 'commit': commit, 'curve': curve,
  }  # fmt: skip


def test_differences_are_in_deviations_where_there_is_one_else_in_points():
  lines = beside.rows(TABLE, [cell(accuracy=0.8878), cell('scaffold', 'labels_1', 0.12)])
  assert [x['difference'] for x in lines] == ['-1.0 sd', '+2.00 points']
  assert lines[0]['published, %'] == '89.23 ± 0.45' and lines[0]['published, seed 42'] == '89.0'


def test_several_seeds_give_a_mean_and_a_deviation():
  (line,) = beside.rows(TABLE, [cell(accuracy=0.88, seed=1), cell(accuracy=0.90, seed=2)])
  assert line['ours, %'] == '89.00 ± 1.41' and line['seeds'] == '1 2'


@pytest.mark.parametrize(
  ('number', 'mean', 'large'),
  [
    (Number(80.0, 1.0), 83.1, True),
    (Number(80.0, 1.0), 77.1, False),
    (Number(80.0), 81.1, True),
    (Number(80.0), 79.1, False),
    (Number(10.0, 0.0), 12.0, True),  # no seeds differed: points
  ],
)
def test_what_is_large(number, mean, large):
  assert beside.is_large(number, mean) == large


def test_warnings_say_what_one_seed_and_a_tuned_number_are_worth():
  note = lambda *x, **kw: beside.rows(TABLE, [cell(*x, **kw)])[0]['note'] or ''
  assert 'one seed decides nothing' in note('fedavg', 'labels_1', 0.3)
  assert 'one seed decides nothing' not in note('fedavg', 'labels_2', 0.78)
  assert 'published: tuned' in note('fedprox', 'iid', 0.894)
  assert 'a large difference' in note('fedavg', 'iid', 0.8)
  two = [cell('fedavg', 'labels_1', 0.3, seed=x) for x in (1, 2)]
  assert 'one seed' not in (beside.rows(TABLE, two)[0]['note'] or '')


def test_a_cell_that_failed_says_so(tmp_path):
  early = cell(accuracy=0.5, rounds=3, seed=1) | {'failure': 'not finite'}
  never = cell('scaffold', accuracy=0.5) | {'best_accuracy': None, 'curve': {}, 'failure': 'oh'}
  one, other = beside.rows(TABLE, [early, never])
  assert one['ours, %'] == '50.00' and 'seed 1 failed: not finite' in one['note']
  assert other['ours, %'] is other['difference'] is None and other['note'] == 'seed 42 failed: oh'
  assert all(x.stat().st_size for x in beside.write(TABLE, [never], tmp_path))


def test_the_files_hold_the_same_cells(tmp_path):
  found = [cell(), cell('fedprox', 'labels_2', 0.78, commit='b' * 40)]
  files = beside.write(TABLE, found, tmp_path)
  assert {x.suffix for x in files} == {'.md', '.csv', '.tex', '.bib', '.json', '.png'}
  assert all(x.stat().st_size for x in files)
  text = (tmp_path / 'niid_bench.md').read_text()
  assert 'cells of several commits: aaaaaaaaaaaa, bbbbbbbbbbbb' in text
  assert '| labels_2 | fedprox |' in text
  lines = list(csv.DictReader(io.StringIO((tmp_path / 'niid_bench.csv').read_text())))
  assert [x['method'] for x in lines] == ['fedavg', 'fedprox']
  assert json.loads((tmp_path / 'niid_bench.json').read_text())['cells'] == found
  assert r'89.23 $\pm$ 0.45' in (tmp_path / 'niid_bench.tex').read_text()
  beside.write(TABLE, found[:1], tmp_path)
  assert 'several commits' not in (tmp_path / 'niid_bench.md').read_text()
