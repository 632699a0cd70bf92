"""The folder of a run: whole or not there, its name, its lock."""

import json
import os
import shutil
import subprocess
import sys

import filelock
import pytest

from fedjax_mem.config.load import config_hash, load_config
from fedjax_mem.runner import folder as folders
from fedjax_mem.runner.folder import RunFolder, create


@pytest.fixture
def out(tmp_path):
  return tmp_path / 'deep' / 'runs'


def finish(folder):
  folder.note(status='finished')


def test_a_new_folder_is_named_by_the_run_and_holds_its_configuration(make, out):
  config = make('seed=5')
  folder = create(config, out)
  assert folder.path == out / f'tiny-{config_hash(config)}'
  assert sorted(x.name for x in folder.path.iterdir()) == ['config.toml', 'manifest.json']
  assert load_config(folder.path / 'config.toml') == config == folder.config
  said = json.loads((folder.path / 'manifest.json').read_text())
  assert said == folder.manifest == RunFolder(folder.path).manifest
  assert said['status'] == 'running' and said['seed'] == 5 and said['warnings'] == []
  assert [x.name for x in out.iterdir()] == [folder.path.name]  # nothing else is left


def test_each_run_has_an_id_of_its_own(make, out):
  ids = set()
  for _ in range(2):
    folder = create(make(), out)
    ids.add(folder.manifest['run_id'])
    finish(folder)
  assert len(ids) == 2 and all(len(bytes.fromhex(x)) == 16 for x in ids)


def test_finished_runs_stay_and_the_next_goes_beside_them(make, out):
  config = make()
  names = []
  for _ in range(3):
    folder = create(config, out)
    finish(folder)
    names.append(folder.path.name)
  assert names == [names[0], f'{names[0]}-2', f'{names[0]}-3']


def test_an_unfinished_run_is_refused_with_the_command_that_resumes_it(make, out):
  first = create(make(), out)
  for status in ('running', 'interrupted'):
    first.note(status=status)
    with pytest.raises(
      ValueError, match=f'not finished: go on with `fedjax-mem resume {first.path}`'
    ):
      create(make(), out)
  finish(first)
  second = create(make(), out)
  with pytest.raises(ValueError, match=f'fedjax-mem resume {second.path}'):
    create(make(), out)
  assert sorted(x.name for x in out.iterdir()) == [first.path.name, second.path.name]


def test_an_unfinished_run_on_real_machines_is_refused_with_its_own_command(make, out):
  first = create(make(), out, deployed=True)
  assert json.loads((first.path / 'manifest.json').read_text())['deployed']
  with pytest.raises(
    ValueError, match=f'go on with `fedjax-mem deploy server {first.path} --kit DIR`'
  ):
    create(make(), out)


def test_a_failed_run_is_left_as_it_is_beside_a_new_one(make, out):
  first = create(make(), out)
  first.note(status='failed')  # resumed, it would fail again
  assert create(make(), out).path.name == f'{first.path.name}-2'
  assert first.manifest['status'] == 'failed'


@pytest.mark.slow
def test_a_run_that_is_in_use_is_refused(make, out):
  folder = create(make(), out)
  holder = subprocess.Popen(
    [
      sys.executable, '-c',
      'import pathlib, sys\n'
      'from fedjax_mem.runner.folder import RunFolder\n'
      'with RunFolder(pathlib.Path(sys.argv[1])).locked():\n'
      "  print('held', flush=True)\n"
      '  sys.stdin.read()\n',
      str(folder.path),
    ],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  try:
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(ValueError, match='in use by another process'), folder.locked():
      pass
    with pytest.raises(ValueError, match='in use by another process'):
      create(make(), out)
  finally:
    holder.kill()  # the system frees the lock of a process that was killed
    holder.communicate()
  with folder.locked():
    pass


@pytest.mark.parametrize('missing', ['config.toml', 'manifest.json'])
def test_a_folder_that_is_not_a_run_is_refused_and_left_alone(make, out, missing):
  folder = create(make(), out)
  (folder.path / missing).unlink()
  with pytest.raises(ValueError, match=f'has no {missing}: put a copy of it back'):
    RunFolder(folder.path)
  with pytest.raises(ValueError, match='Remove it, or choose another folder with --out'):
    create(make(), out)
  assert len(list(folder.path.iterdir())) == 1


def test_a_damaged_manifest_is_named(make, out):
  folder = create(make(), out)
  path = folder.path / 'manifest.json'
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(ValueError, match=r'manifest.json must be readable JSON.*put a sound copy'):
    RunFolder(folder.path)


def test_the_manifest_is_replaced_whole(make, out, monkeypatch):
  folder = create(make(), out)

  def fail(*args):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError, match='No space left'):
    folder.note(status='finished')
  assert RunFolder(folder.path).manifest['status'] == 'running'


def test_an_out_folder_that_cannot_be_written_is_one_clear_error(make, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match=r'run folder .* must be writable, got .*Not a directory'):
    create(make(), tmp_path / 'file' / 'runs')


def test_a_folder_that_could_not_be_completed_is_not_there(make, out, monkeypatch):
  def fail(path, text):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(folders, '_write', fail)
  with pytest.raises(ValueError, match=r'must be writable, got .*No space left'):
    create(make(), out)
  assert not list(out.iterdir())


def test_who_comes_second_in_a_race_sees_a_whole_run(make, out, monkeypatch):
  rename = folders.pathlib.Path.rename

  def slower(self, target):
    if not target.exists():
      shutil.copytree(self, target)  # another process was a moment faster
    return rename(self, target)

  monkeypatch.setattr(folders.pathlib.Path, 'rename', slower)
  with pytest.raises(ValueError, match='go on with `fedjax-mem resume'):
    create(make(), out)


def test_the_commit_is_that_of_this_package_or_none(monkeypatch, tmp_path):
  commit = folders._commit()
  assert commit is None or len(commit.rstrip('+')) == 40
  # An installed copy that lies in the checkout of something else.
  subprocess.run(['git', 'init', '-q', str(tmp_path)], check=True)
  copy = tmp_path / 'env' / 'fedjax_mem' / 'runner' / 'folder.py'
  copy.parent.mkdir(parents=True)
  copy.write_text('')
  monkeypatch.setattr(folders, '__file__', str(copy))
  assert folders._commit() is None


def test_a_folder_that_cannot_be_locked_is_one_clear_error(monkeypatch, make, out):
  def refuse(self):
    raise OSError(37, 'No locks available')

  folder = create(make(), out)
  monkeypatch.setattr(filelock.FileLock, 'acquire', refuse)
  with (
    pytest.raises(ValueError, match=r'can be locked: .*No locks available'),
    folder.locked(),
  ):
    pass
