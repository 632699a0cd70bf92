"""What a process has started ends with it, also if it is killed."""

import os
import signal
import subprocess
import sys
import time

import psutil

from fedjax_mem.deploy import watch

GRANDCHILD = 'import time; time.sleep(60)'
CHILD = f"""
import subprocess, sys, time
from fedjax_mem.deploy import watch
watch.end_with(int(sys.argv[1]))
below = subprocess.Popen([sys.executable, '-c', {GRANDCHILD!r}], start_new_session=True)
print(below.pid, flush=True)
time.sleep(60)
"""
STARTER = f"""
import os, subprocess, sys, time
command = [sys.executable, '-c', {CHILD!r}, str(os.getpid())]
child = subprocess.Popen(command, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def running(pid):
  try:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False


def test_a_killed_starter_takes_all_below_it_along():
  with subprocess.Popen(
    [sys.executable, '-c', STARTER], stdout=subprocess.PIPE, env=os.environ | path()
  ) as starter:
    pids = [int(starter.stdout.readline()) for _ in range(2)]
    assert all(running(pid) for pid in pids)
    assert watch.descendants(starter.pid) == pids
    starter.send_signal(signal.SIGKILL)
  deadline = time.monotonic() + 5
  while any(running(pid) for pid in pids):
    assert time.monotonic() < deadline, 'a process outlived its starter'
    time.sleep(0.05)


def test_a_process_whose_parent_is_gone_already_ends_at_once():
  code = 'from fedjax_mem.deploy import watch; watch.end_with(1); print("alive")'
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, env=os.environ | path())
  assert (done.returncode, done.stdout) == (1, b'')


def test_to_kill_who_is_gone_is_no_error():
  done = subprocess.Popen([sys.executable, '-c', ''])
  done.wait()
  watch.kill(done.pid)
  assert watch.descendants(done.pid) == []


def path():
  return {'PYTHONPATH': os.pathsep.join(sys.path)}
