"""Reading run folders, naming runs, and what a reader is warned of."""

import json
import math

import pytest

from fedjax_mem.report import Run, as_runs, load_run
from fedjax_mem.report.runs import flatten, series, warnings


def make(folder, config='rounds = 2\n', records=({'round': 1}, {'round': 2}), manifest=None):
  folder.mkdir(parents=True)
  (folder / 'config.toml').write_text(config)
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in records))
  if manifest is not None:
    (folder / 'manifest.json').write_text(json.dumps(manifest))
  return folder


def test_a_folder_is_read(tmp_path):
  run = load_run(make(tmp_path / 'a', manifest={'seed': 3}))
  assert (run.name, run.config, run.manifest) == ('a', {'rounds': 2}, {'seed': 3})
  assert [record['round'] for record in run.records] == [1, 2]
  assert warnings(run) == []


def test_a_run_before_its_first_round_is_read(tmp_path):
  (tmp_path / 'config.toml').write_text('rounds = 2\n')
  run = load_run(tmp_path)
  assert run.records == []
  assert warnings(run) == ['The run is not finished: 0 of 2 rounds are done.']


def test_what_is_no_run_is_refused(tmp_path):
  for path in (tmp_path, tmp_path / 'nowhere'):
    with pytest.raises(ValueError, match='a run must be a folder'):
      load_run(path)
  folder = make(tmp_path / 'b')
  (folder / 'manifest.json').write_text('{"a": ')
  with pytest.raises(ValueError, match=r'manifest\.json must be readable'):
    load_run(folder)


def test_sources_of_every_kind(tmp_path):
  folder = make(tmp_path / 'a')
  other = make(tmp_path / 'sub' / 'a')
  records = [{'round': 1}]
  assert [run.name for run in as_runs(folder)] == ['a']
  assert [run.name for run in as_runs(records)] == ['run 1']
  assert as_runs(records)[0].records == records
  runs = as_runs([str(folder), other, records, Run(name='x', records=[]), []])
  assert [run.name for run in runs] == ['a', 'a (2)', 'run 3', 'x', 'run 5']


def test_a_series_has_only_what_was_recorded():
  run = Run(name='x', records=[{'round': 1, 'a': 1}, {'round': 2}, {'round': 5, 'a': math.nan}])
  rounds, values = series(run, 'a')
  assert rounds == [1, 5]
  assert values[0] == 1 and math.isnan(values[1])


def test_warnings_name_clients_and_rounds():
  records = [
    {'round': 1, 'not_finite': [-1, -1], 'select/overflow': 0, 'train_loss': 1.0},
    {'round': 2, 'not_finite': [7, -1], 'select/overflow': 1, 'train_loss': math.nan},
    {'round': 3, 'not_finite': [3, 7], 'select/overflow': 1, 'train_loss': math.inf},
  ]
  run = Run(name='x', records=records, config={'rounds': 3}, manifest={'warnings': ['by hand']})
  assert warnings(run) == [
    'by hand',
    '3 updates were not finite and were left out, first in round 2 (clients 3, 7).',
    '2 cohorts were larger than their capacity and were cut, first in round 2.',
    'train_loss is not finite in 2 rounds, first in round 2.',
  ]


def test_tables_are_flattened():
  tables = {'a': 1, 'b': {'c': [1, 2], 'd': {'e': 'x'}}, 's': [{'use': 'p'}, {'use': 'q'}]}
  assert list(flatten(tables)) == [
    ('a', 1), ('b.c', [1, 2]), ('b.d.e', 'x'), ('s.0.use', 'p'), ('s.1.use', 'q'),
  ]  # fmt: skip
