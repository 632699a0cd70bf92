"""Status files: what they say, how they are written, and that a process ends with its parent."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from fedjax_mem.runner import status

BESIDE = 'import os, sys, time; from fedjax_mem.runner import status; '
# A process that starts another, says its id once that one is bound, and waits.
STARTER = """
import os, subprocess, sys, time
with subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdout=subprocess.PIPE) as child:
  child.stdout.readline()
  print(child.pid, flush=True)
  time.sleep(60)
"""
NO_SIGNAL = 'import ctypes; ctypes.CDLL = lambda *a: (_ for _ in ()).throw(OSError()); '


def environment(**more):
  return os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)} | more


def python(code, **more):
  return subprocess.run(
    [sys.executable, '-c', BESIDE + code], capture_output=True, text=True, env=environment(**more)
  )


def test_what_it_says_is_written_at_once_and_whole(tmp_path):
  file = tmp_path / 'status.json'
  code = f"""
found = lambda: print(open({str(file)!r}).read(), sorted(os.listdir({str(tmp_path)!r})))
mine = status.Status({str(file)!r}); found()
mine.folder('runs/a'); found()
mine.at('round', 3); found()
mine.at('checkpoint'); found()
os._exit(0)
"""
  done = python('pass' + code)
  lines = [x.rpartition(' [') for x in done.stdout.splitlines()]
  assert [x[2] for x in lines] == ["'status.json']"] * 4
  said = [json.loads(x[0]) for x in lines]
  assert len({x.pop('pid') for x in said}) == 1
  assert [x.pop('beat') for x in said] == [1, 2, 3, 4]
  assert said == [
    {'phase': 'starting', 'round': 0, 'folder': None},
    {'phase': 'starting', 'round': 0, 'folder': 'runs/a'},
    {'phase': 'round', 'round': 3, 'folder': 'runs/a'},
    {'phase': 'checkpoint', 'round': 3, 'folder': 'runs/a'},
  ]
  assert status.read(file)['phase'] == 'checkpoint'


def test_it_beats_while_the_main_thread_does_something_else(tmp_path):
  file = tmp_path / 'status.json'
  python(f'status.Status({str(file)!r}); time.sleep(2.6)')
  assert 3 <= status.read(file)['beat'] <= 4


def test_a_phase_that_is_not_there_is_refused_and_a_lost_folder_ends_nothing(tmp_path):
  file = tmp_path / 'there' / 'status.json'
  file.parent.mkdir()
  done = python(
    f'import shutil; mine = status.Status({str(file)!r}); shutil.rmtree({str(file.parent)!r}); '
    "mine.at('ending')\ntry:\n  mine.at('sleep')\nexcept ValueError as error:\n  print(error)"
  )
  assert done.stdout == (
    "phase must be one of starting, round, evaluation, checkpoint, ending, done, got 'sleep'.\n"
  )
  assert done.stderr == ''


@pytest.mark.parametrize('text', [None, '', '{"beat": 1', '[]', '\udcff'])
def test_what_cannot_be_read_is_none(tmp_path, text):
  file = tmp_path / 'status.json'
  if text is not None:
    file.write_bytes(text.encode(errors='surrogateescape'))
  assert status.read(file) is None


@pytest.mark.parametrize(
  ('before', 'after'),
  [('', 'time.sleep(60)'), ('', 'os.kill(os.getpid(), 19)'), (NO_SIGNAL, 'time.sleep(60)')],
  ids=['kernel', 'stopped', 'thread'],
)
def test_it_ends_with_its_parent_however_that_ends(tmp_path, before, after):
  file = tmp_path / 'status.json'
  code = f"{before}{BESIDE}status.Status({str(file)!r}); print('bound', flush=True); {after}"
  with subprocess.Popen(
    [sys.executable, '-c', STARTER, code], stdout=subprocess.PIPE, env=environment()
  ) as starter:
    pid = int(starter.stdout.readline())
    if '19' in after:
      wait(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    assert psutil.pid_exists(pid)
    starter.kill()
  wait(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def wait(found):
  ends = time.monotonic() + 5
  while not found():
    assert time.monotonic() < ends, 'it never came to that'
    time.sleep(0.02)


def test_a_parent_that_has_ended_before_is_noticed():
  done = python('status.tie(); print("alive")', FEDJAX_MEM_PARENT='1')
  assert (done.returncode, done.stdout) == (1, '')
  done = python('status.tie(); print(status.tie())', FEDJAX_MEM_PARENT=str(os.getpid()))
  assert (done.returncode, done.stdout) == (0, f'{os.getpid()}\n')


def test_what_a_bound_process_starts_is_not_bound():
  done = python(
    'status.tie(); print(os.environ.get("FEDJAX_MEM_PARENT"))', FEDJAX_MEM_PARENT=str(os.getpid())
  )
  assert done.stdout == 'None\n'


def test_the_command_is_bound_before_it_does_anything():
  done = subprocess.run(
    [sys.executable, '-m', 'fedjax_mem', '--help'],
    capture_output=True,
    env=environment(FEDJAX_MEM_PARENT='1'),
  )
  assert (done.returncode, done.stdout, done.stderr) == (1, b'', b'')
