"""Tables of published results: which cells there are, what runs again, what their files say."""

import dataclasses
import json

import pytest

from fedjax_mem.config.load import config_hash
from fedjax_mem.studies import cells, fedavgm, fedprox_synthetic, niid_bench
from fedjax_mem.studies.cells import Number, Published

TABLES = (niid_bench.TABLE, fedavgm.TABLE, fedprox_synthetic.TABLE)
NIID = niid_bench.TABLE


@pytest.fixture
def tiny(tmp_path, make):
  """Returns a table of two methods on the tests' small experiment."""
  from fedjax_mem.config.load import to_toml

  path = tmp_path / 'tiny.toml'
  path.write_text(to_toml(make('rounds=2', 'client.epochs=3', 'evaluation.every=1')))
  return Published(
    name='tiny',
    title='tiny',
    config=str(path),
    methods={'plain': (), 'slow': ('client.learning_rate=1e-4',)},
    settings={'iid': ('data.partition=iid',)},
    setting='partition',
    numbers={('plain', 'iid'): Number(90.0, 2.0, 91.0)},
    seeds=(5,),
    notes={},
    says=('tiny',),
    sources=('xiao2017fashion',),
  )


@pytest.mark.parametrize('table', TABLES, ids=lambda x: x.name)
def test_every_cell_of_a_shipped_table_is_a_configuration_of_its_own(table):
  made = cells.cells_of(table)
  assert len(made) == len(table.methods) * len(table.settings) * len(table.seeds)
  assert len({config_hash(x.config) for x in made}) == len({x.file for x in made}) == len(made)
  assert {x.config.execution.checkpoint_every_seconds for x in made} == {600.0}
  assert set(table.numbers) <= {(x.method, x.setting) for x in made}


def test_niid_bench_has_twenty_cells_and_thirty_million_passes_each():
  made = cells.cells_of(NIID)
  assert len(made) == 20
  assert {(x.config.rounds, x.config.client.epochs, x.config.seed) for x in made} == {(50, 10, 42)}
  assert NIID.numbers['scaffold', 'labels_2'] == Number(33.80, 41.22, 10.0)
  assert NIID.numbers['fednova', 'dirichlet'] == Number(88.22, 0.12, 88.1)


def test_cells_are_chosen_by_their_names():
  names = lambda *given: [(x.method, x.setting) for x in cells.cells_of(NIID, given)]
  assert names('fedavg/labels_2', 'fedprox/iid') == [('fedprox', 'iid'), ('fedavg', 'labels_2')]
  assert names('scaffold') == [('scaffold', x) for x in NIID.settings]
  assert names('iid') == [(x, 'iid') for x in NIID.methods]
  assert [x.config.seed for x in cells.cells_of(NIID, ['fedavg/iid'], [3, 1])] == [3, 1]


@pytest.mark.parametrize(
  ('given', 'match'),
  [
    ({'names': ['fedsgd']}, 'cells must be one of'),
    ({'seeds': [1, 1]}, 'seeds must be distinct'),
    ({'overrides': ['client.lr=1']}, 'client.lr'),
  ],
)
def test_bad_cells_are_refused_before_anything_runs(given, match):
  with pytest.raises(ValueError, match=match):
    cells.cells_of(NIID, **given)


@pytest.mark.slow
def test_a_cell_runs_once_and_its_file_says_what_it_gave(tiny, tmp_path, monkeypatch):
  made, lines = cells.cells_of(tiny), []
  found = cells.run_cells(tiny, made, tmp_path / 'out', tell=lines.append)
  assert next(x for x in lines if 'cell' in x) == 'cell 1 of 2'
  assert any('for all that are left' in x for x in lines)
  one = json.loads((tmp_path / 'out' / 'cells' / 'plain-iid-5.json').read_text())
  assert one == found[0]
  assert one['rounds'] == 2 and one['seed'] == 5
  run = cells.load_run(next((tmp_path / 'out').glob('tiny-plain-*')))
  assert one['examples_seen'] == 3 * sum(x['examples'] for x in run.records)
  assert one['best_accuracy'] == max(x['test_accuracy'] for x in run.records)
  assert (one['published_mean'], one['published_sd']) == (90.0, 2.0)
  assert one['config_hash'] == config_hash(made[0].config) == run.manifest['config_hash']
  assert list(one['curve']) == ['1', '2']

  monkeypatch.setattr(cells, 'run', None)  # a second call runs nothing
  assert cells.run_cells(tiny, made, tmp_path / 'out', tell=lines.append) == found
  assert cells.read_cells(made, tmp_path / 'out' / 'cells') == found
  # The file of another configuration does not count.
  changed = cells.cells_of(tiny, overrides=['client.batch_size=7'])
  assert cells.read_cells(changed, tmp_path / 'out' / 'cells') == []


@pytest.mark.slow
def test_a_cell_that_was_killed_goes_on_and_gives_the_same(tiny, tmp_path, monkeypatch):
  whole = cells.run_cells(tiny, cells.cells_of(tiny, ['plain']), tmp_path / 'whole')[0]

  class Killed(Exception):
    pass

  from fedjax_mem.runner import rounds

  segment = rounds.Rounds._segment

  def stops(self, state, count):
    if int(state.round) == 1:
      raise Killed
    return segment(self, state, count)

  with monkeypatch.context() as patch:
    patch.setattr(rounds.Rounds, '_segment', stops)
    with pytest.raises(Killed):
      cells.run_cells(tiny, cells.cells_of(tiny, ['plain']), tmp_path / 'killed')
  again = cells.run_cells(tiny, cells.cells_of(tiny, ['plain']), tmp_path / 'killed')[0]
  timeless = lambda x: {k: v for k, v in x.items() if k != 'seconds'}
  assert timeless(again) == timeless(whole)


@pytest.mark.slow
def test_a_run_that_fails_has_a_file_that_says_so_and_the_others_go_on(tiny, tmp_path, monkeypatch):
  table = tiny._replace(methods={'wild': ('client.learning_rate=1e38',), 'plain': ()})
  lines = []
  wild, plain = cells.run_cells(table, cells.cells_of(table), tmp_path, tell=lines.append)
  assert 'no client of round 1 sent a finite update' in wild['failure']
  assert any(x.startswith('failed: ') for x in lines)
  assert wild['best_accuracy'] is None and wild['rounds'] == 1
  assert plain['best_accuracy'] > 0 and 'failure' not in plain
  monkeypatch.setattr(cells, 'resume', None)  # nor does it fail again
  assert cells.run_cells(table, cells.cells_of(table), tmp_path) == [wild, plain]


def test_a_damaged_file_is_named(tiny, tmp_path):
  made = cells.cells_of(tiny, ['plain'])
  (tmp_path / made[0].file).write_text('{')
  with pytest.raises(ValueError, match=r'plain-iid-5\.json must be the file of a cell'):
    cells.read_cells(made, tmp_path)
  (tmp_path / made[0].file).write_text('{"best_accuracy": NaN}')
  with pytest.raises(ValueError, match=r'plain-iid-5\.json .* must be finite, got NaN'):
    cells.read_cells(made, tmp_path)


def test_a_file_of_another_configuration_is_not_overwritten(tiny, tmp_path):
  (cell,) = cells.cells_of(tiny, ['plain'])
  (tmp_path / cell.file).write_text('{"config_hash": "of another"}')
  with pytest.raises(ValueError, match=r'no files of other configurations, got plain-iid-5\.json'):
    cells.run_cells(tiny, [cell], tmp_path / 'out', tmp_path)
  assert 'of another' in (tmp_path / cell.file).read_text()


def test_seeds_change_nothing_but_the_seed():
  a, b = cells.cells_of(NIID, ['fedavg/iid'], [1, 2])
  assert dataclasses.replace(b.config, seed=1) == a.config
