"""Folders whose records or checkpoints were damaged: what a resumed run says and goes on from."""

import json
import os
import shutil

import jax
import numpy as np
import pytest

from fedjax_mem.config.load import load_config
from fedjax_mem.report.tracker import read_metrics
from fedjax_mem.runner import restoring
from fedjax_mem.runner.checkpoint import CheckpointError, Checkpoints
from fedjax_mem.runner.loop import resume, run

pytestmark = pytest.mark.usefixtures('undrawn')


def test_the_rounds_that_are_lost_are_named():
  records = [{'round': 1}, {'round': 3}, {'loss': 1.0}, {'round': 'two'}]
  assert restoring.published(records) == 3 and restoring.published([]) == 0
  assert restoring.lost(records, 1) == []
  (line,) = restoring.lost(records, 5)
  assert line.startswith('the records of these rounds are lost: 2, 4 to 5; ')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run of 6 rounds with a checkpoint after each, of which the last 3 are kept."""
  file = tmp_path_factory.mktemp('config') / 'whole.toml'
  file.write_text(
    "version = 1\nname = 'whole'\nrounds = 6\n[data]\nname = 'digits'\nnum_clients = 12\n"
    "[model]\nname = 'logistic'\n[selection]\ncohort_size = 4\n[execution]\ndevices = 1\n"
    'max_segment_rounds = 1\ncheckpoint_every_seconds = 0\n'
  )
  result = run(load_config(file), tmp_path_factory.mktemp('runs'))
  (result.folder / 'report.html').unlink()  # as if it had been killed just before
  return result


@pytest.fixture
def folder(whole, tmp_path):
  return shutil.copytree(whole.folder, tmp_path / 'run')


def warnings(folder):
  return json.loads((folder / 'manifest.json').read_text())['warnings']


def resumed(folder):
  return json.loads((folder / 'manifest.json').read_text())['resumed'][-1]


def timeless(records):
  return [{k: x for k, x in record.items() if k != 'seconds'} for record in records]


def same_end(result, whole):
  for a, b in zip(jax.tree.leaves(result.params), jax.tree.leaves(whole.params), strict=True):
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def cut(folder, keep):
  """Keeps the first lines of the records, and a piece of the next."""
  file = folder / 'metrics.jsonl'
  lines = file.read_bytes().splitlines(keepends=True)
  file.write_bytes(b''.join(lines[:keep]) + (lines[keep][:30] if keep < len(lines) else b''))


# The checkpoints are 4, 5 and 6.
@pytest.mark.slow
@pytest.mark.parametrize(('keep', 'start'), [(5, 5), (4, 4)])
def test_where_records_are_short_the_earlier_checkpoint_is_taken(folder, whole, keep, start):
  cut(folder, keep)
  result = resume(folder)
  same_end(result, whole)
  assert timeless(result.metrics) == timeless(whole.metrics)  # no round is lost
  assert read_metrics(folder / 'metrics.jsonl') == result.metrics
  assert resumed(folder) == start
  assert warnings(folder) == [
    f'checkpoint {n} is left out: the records of its rounds are incomplete'
    for n in range(6, start, -1)
  ]
  assert Checkpoints(folder / 'checkpoints').numbers() == [6, 5, 4]


@pytest.mark.slow
@pytest.mark.parametrize(('how', 'lost'), [('cut', '3 to 4'), ('deleted', '1 to 4')])
def test_where_no_checkpoint_is_early_enough_lost_rounds_are_named(folder, whole, how, lost):
  if how == 'deleted':
    (folder / 'metrics.jsonl').unlink()
  else:
    cut(folder, 2)
  result = resume(folder)
  same_end(result, whole)
  assert resumed(folder) == 4  # the oldest: the fewest rounds are lost
  (line,) = [x for x in warnings(folder) if 'lost' in x]
  assert line.startswith(f'the records of these rounds are lost: {lost}; ')
  assert 'the records of these rounds are lost' in (folder / 'report.html').read_text()
  assert timeless(result.metrics) == [
    x for x in timeless(whole.metrics) if x['round'] > 4 or (x['round'] < 3 and how == 'cut')
  ]


@pytest.mark.slow
def test_a_broken_line_amid_the_records_is_one_line_with_a_remedy(folder):
  file = folder / 'metrics.jsonl'
  lines = file.read_bytes().splitlines(keepends=True)
  file.write_bytes(b''.join([*lines[:2], lines[2][:20] + b'\n', *lines[3:]]))
  before = file.read_bytes()
  with pytest.raises(ValueError, match=r'metrics.jsonl, line 3, must be .*: remove this line') as e:
    resume(folder)
  assert '\n' not in str(e.value) and file.read_bytes() == before


@pytest.mark.slow
def test_all_checkpoints_damaged_is_one_line_whose_remedy_works(folder, whole):
  for path in (folder / 'checkpoints').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:-7])
  words = (
    r'no sound checkpoint in .*; put a sound one back, or remove this folder: resumed, the run'
  )
  with pytest.raises(CheckpointError, match=words) as error:
    resume(folder)
  assert '\n' not in str(error.value)
  shutil.rmtree(folder / 'checkpoints')
  result = resume(folder)
  same_end(result, whole)
  assert timeless(result.metrics) == timeless(whole.metrics) and resumed(folder) == 0


@pytest.mark.slow
def test_records_are_on_the_disk_before_their_checkpoint(whole, tmp_path, monkeypatch):
  synced, saved = {}, []
  fsync, save = os.fsync, Checkpoints.save

  def noting(descriptor):
    fsync(descriptor)
    status = os.fstat(descriptor)
    synced[status.st_ino] = status.st_size

  def checked(self, state):
    status = (self.folder.parent / 'metrics.jsonl').stat()
    saved.append((int(state.round), synced.get(status.st_ino), status.st_size))
    return save(self, state)

  monkeypatch.setattr(os, 'fsync', noting)
  monkeypatch.setattr(Checkpoints, 'save', checked)
  run(load_config(whole.folder / 'config.toml'), tmp_path)
  assert [number for number, _, _ in saved] == [1, 2, 3, 4, 5, 6]
  assert all(on_disk == size > 0 for _, on_disk, size in saved)
