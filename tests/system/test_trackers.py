"""Trackers of other projects: their files, read by their own readers, after a resumed run."""

import dataclasses
import json
import time

import pytest

import fedjax_mem as fm
from fedjax_mem.report.tracker import read_metrics
from fedjax_mem.runner.trackers import TRACKERS, About, numbers

pytestmark = pytest.mark.slow  # they are in the extra `trackers`
NAMES = ('csv', 'mlflow', 'tensorboard', 'wandb')


class Stop(fm.Tracker):
  """Ends a run once round 3 is in a checkpoint."""

  def checkpoint(self, round):
    if round == 3:
      raise KeyboardInterrupt


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run that was interrupted after round 3 of 6 and resumed, with all trackers; its folder."""
  from reference.experiments import TINY

  file = tmp_path_factory.mktemp('config') / 'tiny.toml'
  file.write_text(
    TINY
    + f'segment_seconds = 1e-9\ncheckpoint_every_seconds = 0\n[tracking]\nuse = {list(NAMES)}\n'
  )
  config = fm.load_config(file)
  assert set(config.tracking.use) == set(TRACKERS)
  out = tmp_path_factory.mktemp('runs')
  with pytest.raises(KeyboardInterrupt):
    fm.run(config, out, trackers=[Stop()], quiet=True)
  (folder,) = out.iterdir()
  fm.resume(folder, quiet=True)
  records = {r['round']: numbers(r) for r in read_metrics(folder / 'metrics.jsonl')}
  assert list(records) == [1, 2, 3, 4, 5, 6]
  return folder, records


def test_csv(run):
  import pandas

  folder, records = run
  table = pandas.read_csv(folder / 'metrics.csv').set_index('round')
  assert table.index.tolist() == list(records)
  for r, metrics in records.items():
    assert table.loc[r].dropna().to_dict() == metrics


def test_tensorboard(run):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  folder, records = run
  found = EventAccumulator(str(folder / 'tensorboard')).Reload()
  for name in ('train_loss', 'bytes_up'):
    events = {x.step: x.value for x in found.Scalars(name)}
    assert events == pytest.approx({r: x[name] for r, x in records.items()}, rel=1e-6)
  scored = [x.step for x in found.Scalars('test_accuracy')]
  assert scored == [r for r, x in records.items() if 'test_accuracy' in x]


def test_tensorboard_forgets_rounds_of_a_run_that_died_before_its_first_checkpoint(tmp_path):
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  about = About('a', 'id', tmp_path, {}, 2, 0)
  for value in (1.0, 2.0):
    tracker = TRACKERS['tensorboard']()
    tracker.start(about)
    tracker.segment([{'round': 1, 'loss': value}])
    tracker.end('failed')
    time.sleep(1.1)  # readers take files by the second in their names
  found = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
  assert [(x.step, x.value) for x in found.Scalars('loss')] == [(1, 2.0)]


def test_mlflow(run):
  from mlflow.tracking import MlflowClient

  folder, records = run
  client = MlflowClient(f'sqlite:///{folder / "mlflow.db"}')
  (found,) = client.search_runs([client.get_experiment_by_name('fedjax_mem').experiment_id])
  assert found.info.status == 'FINISHED' and found.info.run_name == folder.name
  assert found.data.params['model.name'] == 'logistic'
  history = client.get_metric_history(found.info.run_id, 'train_loss')
  assert {x.step: x.value for x in history} == {r: x['train_loss'] for r, x in records.items()}


def test_wandb(run):
  from wandb.proto import wandb_internal_pb2

  folder, records = run
  files = sorted((folder / 'wandb').glob('offline-run-*/*.wandb'))
  seen = {}
  for path in files:
    for raw in logged(path.read_bytes()):
      record = wandb_internal_pb2.Record()
      record.ParseFromString(raw)
      if record.WhichOneof('record_type') == 'history':
        items = {(x.key or x.nested_key[0]): json.loads(x.value_json) for x in record.history.item}
        seen[items['_step']] = items
  assert sorted(seen) == list(records)
  for r, metrics in records.items():
    assert {k: seen[r][k] for k in metrics} == pytest.approx(metrics)


def logged(data):
  """Yields the records of a W&B file: LevelDB's log format after a header of 7 bytes."""
  at, parts = 7, []
  while at + 7 <= len(data):
    left = 32768 - at % 32768
    if left < 7:
      at += left
      continue
    length, kind = int.from_bytes(data[at + 4 : at + 6], 'little'), data[at + 6]
    parts.append(data[at + 7 : at + 7 + length])
    at += 7 + length
    if kind in (1, 4):  # a whole record, or its last part
      yield b''.join(parts)
      parts = []


def test_a_package_that_is_missing_is_named(monkeypatch, make):
  import sys

  from fedjax_mem.runner import trackers

  monkeypatch.setitem(sys.modules, 'wandb', None)
  config = dataclasses.replace(make(), tracking=make('tracking.use=["wandb"]').tracking)
  with pytest.raises(
    ValueError, match=r"one that needs 'wandb': pip install 'fedjax_mem\[trackers\]'"
  ):
    trackers.asked(config.tracking)
