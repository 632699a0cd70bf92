"""Whole sweeps: lanes are the runs alone, failures stay with their lane, a kill changes nothing."""

import json
import math
import os
import shutil
import signal

import pytest

from fedjax_mem.cli import main
from fedjax_mem.report.tracker import MetricsWriter
from fedjax_mem.runner.loop import Interrupted, resume, run
from fedjax_mem.studies.sweeps import sweep as sweeps
from fedjax_mem.studies.sweeps.sweep import sweep

pytestmark = pytest.mark.usefixtures('undrawn')

SHARED = ('data.partition_seed=0', 'rounds=4', 'evaluation.every=2', 'client.epochs=2')
PRIVATE = (
  'selection.name=poisson',
  'weighting={name="equal", options={divisor=4}}',
  'stages=[{use="central", options={l2_clip_norm=0.5, noise_multiplier=1.0}}]',
  'privacy.delta=1e-5',
)


class Killed(BaseException):
  """Stands for a death that nothing in the package may catch."""


@pytest.fixture
def after(monkeypatch):
  """Returns how to do something once, right after so many records were written."""

  def install(count, action):
    write, seen = MetricsWriter.write, []

    def wrapped(self, record):
      write(self, record)
      seen.append(record)
      if len(seen) == count:
        action()

    monkeypatch.setattr(MetricsWriter, 'write', wrapped)
    return lambda: monkeypatch.setattr(MetricsWriter, 'write', write)

  return install


def die():
  raise Killed


def timeless(records):
  return [json.dumps({k: x for k, x in r.items() if k != 'seconds'}) for r in records]


def assert_close(records, others):
  assert len(records) == len(others)
  for a, b in zip(records, others, strict=True):
    assert list(a) == list(b)
    for key, value in a.items():
      if key != 'seconds' and isinstance(value, float):
        assert b[key] == pytest.approx(value, rel=1e-5), key
      elif key != 'seconds':
        assert b[key] == value, key


@pytest.mark.slow
def test_a_lane_that_diverges_ends_alone_and_every_output_says_so(make, tmp_path, capsys):
  rates = [0.1, 0.2, 3e38]
  found = sweep(make(*SHARED), {'client.learning_rate': rates}, [0, 1], tmp_path, quiet=True)
  assert [x.status for x in found.lanes] == ['finished'] * 4 + ['failed'] * 2
  assert {x.how for x in found.lanes} == {'in one program with 5 others'}
  assert [len(x.metrics) for x in found.lanes[:4]] == [4] * 4
  assert all(len(x.metrics) < 4 for x in found.lanes[4:])
  assert found.best.values['client.learning_rate'] in rates[:2]
  point = found.points[0].interval('test_accuracy')
  values = [x.metrics[-1]['test_accuracy'] for x in found.points[0].lanes]
  assert point.mean == pytest.approx(sum(values) / 2) and point.n == 2
  assert point.half == pytest.approx(12.7062 * abs(values[0] - values[1]) / 2, rel=1e-4)
  folder = found.folder
  table = (folder / 'table.md').read_text()
  assert 'best: lowest mean of the final training loss' in table and '| ★ ' in table
  assert table.count('failed: client.learning_rate=3e+38') == 2
  assert r'\textbf{$\star$}' in (folder / 'table.tex').read_text()
  said = json.loads((folder / 'results.json').read_text())
  assert said['points'][2]['failed'] == 2 and said['best'] == found.best.values
  assert '1 of 3 points failed, whole or in part' in (folder / 'curves.svg').read_text()
  assert (folder / 'curves.png').exists()
  shown = capsys.readouterr().out
  assert 'left' in shown  # the time that is left, of the whole
  rounds = sum(len(x.metrics) for x in found.lanes)
  assert f'round {rounds}/{rounds} ' in shown  # rounds that no lane will run are not waited for
  lane = found.lanes[0].folder
  with pytest.raises(ValueError, match='got a lane of a sweep: go on with `fedjax-mem resume'):
    resume(lane)


def test_a_damaged_description_is_named(make, tmp_path):
  folder = tmp_path / 'damaged'
  folder.mkdir()
  with pytest.raises(ValueError, match=r'a sweep must be a folder with sweep\.json, got '):
    sweeps.resume(folder)
  for text in ('{"x', '[]', '{}'):
    (folder / 'sweep.json').write_text(text)
    with pytest.raises(ValueError, match=r'got an error: .* move the folder away'):
      sweeps.resume(folder)


def test_nothing_is_made_where_a_point_is_refused(make, tmp_path):
  config = make(*SHARED, *PRIVATE)
  bad = {'stages.0.options.l2_clip_norm': [1.0, -1.0]}
  with pytest.raises(ValueError, match=r'-1.0, seed 0: stages\[0\]: l2_clip_norm must be'):
    sweep(config, bad, [0], tmp_path / 'runs')
  grid = {'client.learning_rate': [0.1]}
  with pytest.raises(ValueError, match=r"select must be 'loss' or 'test' without data\.validation"):
    sweep(config, grid, [0], tmp_path / 'runs', select='validation')
  with pytest.raises(ValueError, match='at_once must be'):
    sweep(config, grid, [0], tmp_path / 'runs', at_once=0)
  with pytest.raises(ValueError, match=r'a sweep must be a folder with sweep\.json'):
    sweeps.resume(tmp_path)
  assert not (tmp_path / 'runs').exists()


@pytest.mark.slow
def test_lanes_and_runs_in_turn_are_the_runs_alone(make, tmp_path):
  config = make(*SHARED[1:], 'data.validation=0.1')
  # Without momentum there is no buffer: another program. Each seed has a partition of its own.
  found = sweep(config, {'client.momentum': [0.0, 0.5, 0.9]}, [0, 1], tmp_path, quiet=True)
  assert found.select == 'validation' and 'validation split' in found.chosen_by
  assert [x.how.split(':')[0][:14] for x in found.lanes[2:]] == ['in one program'] * 4
  for i, lane in enumerate(found.lanes):
    own = (f'client.momentum={lane.values["client.momentum"]}', f'seed={lane.seed}')
    one = make(*SHARED[1:], 'data.validation=0.1', *own)
    alone = run(one, tmp_path / f'run{i}', quiet=True)
    assert_close(alone.metrics, lane.metrics)
    assert 0 <= lane.scores['validation_accuracy'] <= 1


@pytest.mark.slow
def test_under_a_claim_lanes_have_roots_of_their_own_and_all_are_stated_together(make, tmp_path):
  grid = {'stages.0.options.noise_multiplier': [1.0, 2.0]}
  found = sweep(make(*SHARED, *PRIVATE), grid, [0, 1], tmp_path / 'a', quiet=True)
  keys = {(x.folder / 'noise.key').read_text().split()[0] for x in found.lanes}
  assert len(keys) == 4 and len({x.metrics[-1]['train_loss'] for x in found.lanes}) == 4
  epsilons = [x.scores['epsilon'] for x in found.lanes]
  assert epsilons[0] == epsilons[1] > epsilons[2] == epsilons[3]
  together = float(found.privacy.partition('ε = ')[2].split()[0])
  assert max(epsilons) < together < sum(epsilons)
  table = (found.folder / 'table.md').read_text()
  assert 'all 4 lanes together' in table and 'training loss (not covered' in table
  ledgers = [json.loads((x.folder / 'ledger.json').read_text()) for x in found.lanes]
  assert [(x['charged'], x['done']) for x in ledgers] == [(4, 4)] * 4
  again = sweep(make(*SHARED, *PRIVATE, 'noise_seed=0'), grid, [0, 1], tmp_path / 'b', quiet=True)
  for i, lane in enumerate(again.lanes):
    (multiplier,) = lane.values.values()
    stage = PRIVATE[2].replace('noise_multiplier=1.0', f'noise_multiplier={multiplier}')
    seeds = (f'seed={lane.seed}', f'noise_seed={lane.seed}')
    alone = run(make(*SHARED, *PRIVATE, stage, *seeds), tmp_path / f'run{i}', quiet=True)
    assert_close(alone.metrics, lane.metrics)


@pytest.mark.slow
@pytest.mark.parametrize('private', [False, True])
def test_a_sweep_that_was_killed_gives_the_same_bits(make, tmp_path, after, private):
  extra = (*PRIVATE, 'noise_seed=0') if private else ()
  config = make(*SHARED, *extra, 'execution.checkpoint_every_seconds=0')
  grid = {'client.learning_rate': [0.1, 0.2, 3e38], 'client.momentum': [0.0, 0.9]}
  whole = sweep(config, grid, [0], tmp_path / 'a', quiet=True)
  for count in (8,) if private else (5,):  # later, or within the second segment of a group
    out = tmp_path / f'b{count}'
    undo = after(count, die)
    with pytest.raises(Killed):
      sweep(config, grid, [0], out, quiet=True)
    undo()
    (folder,) = out.iterdir()
    assert json.loads((folder / 'sweep.json').read_text())['status'] == 'running'
    again = sweeps.resume(folder, quiet=True)
    assert [x.status for x in again.lanes] == [x.status for x in whole.lanes]
    for a, b in zip(whole.lanes, again.lanes, strict=True):
      assert timeless(a.metrics) == timeless(b.metrics)


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_and_a_finished_one_is_written_again(
  make, tmp_path, after, capsys
):
  grid, config = {'client.learning_rate': [0.1, 0.2]}, make(*SHARED)
  undo = after(1, lambda: os.kill(os.getpid(), signal.SIGINT))
  with pytest.raises(Interrupted, match='go on with: fedjax-mem resume'):
    sweep(config, grid, [0], tmp_path, quiet=True)
  undo()
  (folder,) = tmp_path.glob('*-sweep-*')
  damaged, sound = sorted((folder / 'lanes').iterdir())
  (damaged / 'metrics.jsonl').unlink()
  assert main.main(['resume', str(folder), '--quiet']) == 0
  # The only checkpoint is that of the interrupt: what was before it is lost, and named.
  said = [json.loads((x / 'manifest.json').read_text())['warnings'] for x in (damaged, sound)]
  assert 'the records of these rounds are lost: 1; ' in said[0][-1] and said[1] == []
  assert 'best: lowest mean' in capsys.readouterr().out
  shutil.rmtree(folder / 'checkpoints', ignore_errors=True)
  before = (folder / 'lanes').stat().st_mtime_ns
  again = sweep(config, grid, [0], tmp_path, select='test', quiet=True)
  assert (folder / 'lanes').stat().st_mtime_ns == before
  assert sorted(len(x.metrics) for x in again.lanes) == [3, 4]
  for name in ('table.md', 'table.csv', 'table.tex', 'results.json'):
    assert 'TEST accuracy' in (folder / name).read_text(), name


@pytest.mark.slow
def test_noise_of_clients_is_in_the_ledger_of_each_lane_ahead(make, tmp_path):
  local = ('weighting.name=equal', 'privacy.delta=1e-5')
  stage = 'stages=[{use="local", options={l2_clip_norm=0.5, noise_multiplier=4.0}}]'
  grid = {'stages.0.options.noise_multiplier': [4.0, 8.0]}
  found = sweep(make(*SHARED, *local, stage), grid, [0], tmp_path, quiet=True)
  assert {x.how for x in found.lanes} == {'in one program with 1 other'}
  one, two = (x.scores['epsilon'] for x in found.lanes)
  assert math.isfinite(one) and one > two and 'all 2 lanes together' in found.privacy


def test_several_processes_are_refused(make, tmp_path, monkeypatch):
  monkeypatch.setattr(sweeps.jax.distributed, 'is_initialized', lambda: True)
  with pytest.raises(ValueError, match='a sweep must run in one process'):
    sweep(make(), {'seed': [0]}, [0], tmp_path)
