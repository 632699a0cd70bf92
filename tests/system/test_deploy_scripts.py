"""The examples of deployment: whole runs of processes, of which none is left, also after Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from reference.signals import heard

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[2] / 'scripts' / 'examples'
PATIENCE = 300  # seconds, on a machine that is busy with other tests


def begin(name, folder):
  """Starts a script in a session of its own, with its temporary folder in `folder`."""
  path = os.pathsep.join((os.path.dirname(sys.executable), os.environ['PATH']))
  return subprocess.Popen(
    heard(HERE / name),
    env={**os.environ, 'PATH': path, 'TMPDIR': str(folder)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def left(folder):
  """Returns the processes that name a folder."""
  found = subprocess.run(['pgrep', '-af', str(folder)], capture_output=True, text=True)
  return found.stdout.splitlines()


@pytest.fixture
def scripts(tmp_path):
  """Starts scripts; what still runs at the end is killed."""
  started = []

  def start(name, folder):
    folder.mkdir()
    started.append(begin(name, folder))
    return started[-1]

  yield start
  for process in started:
    if process.poll() is None:
      process.send_signal(signal.SIGTERM)
      process.communicate()


def accuracies(said):
  return {
    kind: float(re.search(rf'^{kind} +test accuracy ([0-9.]+)', said, re.M)[1])
    for kind in ('deployed', 'simulated')
  }


def finished(process, folder):
  said, errors = process.communicate(timeout=PATIENCE)
  assert process.returncode == 0, said + errors
  assert not left(folder) and not list(folder.iterdir())
  return said


def test_a_deployment_on_one_machine_is_as_good_as_the_simulation(scripts, tmp_path):
  said = finished(scripts('deploy_localhost.sh', tmp_path / 'a'), tmp_path / 'a')
  found = accuracies(said)
  # Of 17 simulations with noise of their own: 0.833 to 0.919.
  assert min(found.values()) > 0.75 and abs(found['deployed'] - found['simulated']) < 0.15
  assert len(re.findall(r'test accuracy .* epsilon 592\.7$', said, re.M)) == 2


def test_secure_aggregation_goes_on_without_a_client_whose_keys_are_shared(scripts, tmp_path):
  said = finished(scripts('deploy_secagg.sh', tmp_path / 'a'), tmp_path / 'a')
  found = accuracies(said)
  assert min(found.values()) > 0.85 and abs(found['deployed'] - found['simulated']) < 0.04
  counts = dict(re.findall(r'round 2: ([A-Z]+): (\d of \d)', said))
  assert counts['SHARES'] == '5 of 5' and counts['UNMASK'] in ('4 of 4', '4 of 5')


def test_ctrl_c_leaves_no_process_and_no_file(scripts, tmp_path):
  folders = tmp_path / 'alone', tmp_path / 'group'
  started = [scripts('deploy_localhost.sh', folder) for folder in folders]
  asked, ends = set(), time.monotonic() + PATIENCE
  while len(asked) < len(folders):
    assert time.monotonic() < ends
    for process, folder in zip(started, folders, strict=True):
      # Until the engine's jobs run: two processes of each party, beside the commands.
      if process not in asked and sum('worker_process' in x for x in left(folder)) == 3:
        assert process.poll() is None
        if folder.name == 'alone':
          process.send_signal(signal.SIGINT)
        else:
          os.killpg(process.pid, signal.SIGINT)
        asked.add(process)
    time.sleep(0.1)
  for process, folder in zip(started, folders, strict=True):
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert not left(folder) and not list(folder.iterdir())
