"""Processes of a deployment that are killed, hang or come back: the real commands on this machine.

One run lives through all of it, since starting the processes takes nearly all of the time.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from reference.deployment import ROOT, free_ports, until
from reference.signals import heard

from fedjax_mem.report.tracker import read_metrics

pytestmark = pytest.mark.slow
TEXT = """
version = 1
name = 'recovery'
rounds = 12
[data]
name = 'synthetic'
num_clients = 2
[model]
name = 'logistic'
[client]
batch_size = 40
learning_rate = 0.1
[selection]
cohort_size = 2
[weighting]
name = 'equal'
options = { divisor = 2 }
[[stages]]
use = 'central'
options = { l2_clip_norm = 1.0, noise_multiplier = 1.0 }
[[stages]]
use = 'top_k'
options = { fraction = 0.1 }
[privacy]
delta = 1e-3
[evaluation]
every = 100
[deploy]
round_timeout = 3.0
"""
SIMULATION = """
import sys
from pathlib import Path
import numpy as np
from fedjax_mem.deploy import job
from fedjax_mem.runner import checkpoint, secret
from fedjax_mem.runner.folder import RunFolder
from fedjax_mem.runner.prepare import get_ready
from reference import deployed

folder = RunFolder(Path(sys.argv[1]))
ready = get_ready(job.looped(folder.config), None, {})
root = secret.read(folder.path, folder.manifest['run_id'])
state, _ = deployed.simulated(ready._replace(sim=ready.sim.with_root(root)), int(sys.argv[2]))
np.savez(sys.argv[3], **checkpoint._flatten(state._replace(clients={})))
"""
LONG = 120  # seconds: a limit that only a fault reaches, also on a machine that is busy


class Commands:
  """The commands of a deployment, and what their processes do.

  Attributes:
    kits: folder of the kits.
    out: folder of the run's folder.
    running: the commands that were started last, by party.
  """

  def __init__(self, folder):
    self.folder, self.kits, self.out = folder, folder / 'kits', folder / 'runs'
    self.faults = folder / 'faults'
    self.faults.mkdir()
    self.running = {}
    port, admin_port = free_ports(2)
    ports = ('--port', port, '--admin-port', admin_port)
    assert self._start('keys', 'keys', self.kits, '--clients', 'a,b', *ports).wait() == 0

  def _start(self, name, *words):
    path = [self.folder / 'none', ROOT / 'tests' / 'reference' / 'deploy_faults', ROOT]
    more = {'PYTHONPATH': os.pathsep.join(map(str, path[1:])), 'FAULTS': str(self.faults)}
    with (self.folder / f'{name}.txt').open('w') as said:
      return subprocess.Popen(
        heard(sys.executable, '-m', 'fedjax_mem', 'deploy', *words),
        cwd=self.folder, stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu', **more},
      )  # fmt: skip

  def server(self, what):
    kit = ('--kit', self.kits / 'server')
    self.running['server'] = self._start('server', 'server', what, *kit, '--out', self.out)

  def client(self, name):
    self.running[name] = self._start(name, 'client', '--kit', self.kits / name)

  def said(self, name):
    """Returns what the command of a party has printed."""
    return (self.folder / f'{name}.txt').read_text()

  def processes(self, name):
    """Returns all processes of a party: its command's, and those that were told of its kit."""
    place = str(self.kits / name / 'work' / 'place.json')
    found = []
    for process in psutil.process_iter():
      with contextlib.suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE and (
          process.pid == self.running[name].pid
          or process.environ().get('FEDJAX_MEM_DEPLOY') == place
        ):
          found.append(process)
    return found

  def worker(self, name):
    """Returns the process of a client's side of the job."""
    (found,) = [x for x in self.processes(name) if 'worker_process' in ' '.join(x.cmdline())]
    return found

  def gone(self, name):
    """Waits until no process of a party is left."""
    self.running[name].wait(LONG)
    until(lambda: not self.processes(name), 15, f'processes of {name} have ended')

  def gate(self, rounds):
    """Lets so many rounds end, and no more."""
    beside = self.faults / 'gate.part'
    beside.write_text(str(rounds))
    beside.replace(self.faults / 'gate')

  def kill(self, point, round, whom):
    """Has processes of the server killed at a point of a round."""
    (self.faults / 'kill').write_text(f'{point} {round} {whom}')

  def run(self):
    """Returns the folder of the run."""
    (found,) = [x for x in self.out.iterdir() if not x.name.startswith('.')]
    return found

  def records(self):
    with contextlib.suppress(OSError, ValueError):
      return read_metrics(self.run() / 'metrics.jsonl')
    return []

  def until_round(self, round):
    """Waits for the end of a round."""
    self.gate(round)
    until(lambda: len(self.records()) >= round, LONG, f'round {round} has ended')

  def charged(self):
    """Returns the rounds that the ledger counts."""
    return json.loads((self.run() / 'ledger.json').read_text())['charged']

  def full(self):
    """Returns the number of jobs so far that began with all clients."""
    return self.log().count(' clients: a, b\n')

  def until_full(self, jobs):
    """Waits until more jobs than so many have begun with all clients."""
    until(lambda: self.full() > jobs, LONG, 'a job has all clients')

  def interrupted(self):
    """Starts the server, and ends it by Ctrl-C while it waits for clients."""
    self.server(self.run())
    until(lambda: 'log of the engine' in self.said('server'), LONG, 'the engine was started')
    self.running['server'].send_signal(signal.SIGINT)
    self.gone('server')
    assert self.running['server'].returncode == 130
    done = self.records()[-1]['round']
    assert self.said('server').splitlines()[-1] == (
      f'fedjax-mem: interrupted: Ctrl-C: stopped after round {done}; go on with: '
      f'fedjax-mem deploy server {self.run()} --kit {self.kits / "server"}'
    )

  def log(self):
    return (self.run() / 'deploy.log').read_text()


@pytest.fixture(scope='module')
def commands(tmp_path_factory):
  """Clients that wait for their server, which has ended one round once it is here."""
  made = Commands(tmp_path_factory.mktemp('recovery'))
  file = made.folder / 'recovery.toml'
  file.write_text(TEXT)
  try:
    for name in 'ab':
      made.client(name)
    made.gate(1)
    made.server(file)
    made.until_round(1)
    yield made
  finally:
    for process in made.running.values():
      with contextlib.suppress(psutil.Error):
        for x in [*psutil.Process(process.pid).children(recursive=True), process]:
          x.kill()


def test_a_server_killed_anywhere_goes_on_as_if_it_had_not_been(commands, state_of):
  """The clients are not touched: they come back by themselves."""
  commands.kill('charged', 2, 'job')
  commands.until_round(2)  # the command is there: it has submitted the next job
  kills = {3: ('collecting', 'engine'), 4: ('stepped', 'command'), 5: ('checkpoint', 'all')}
  for round, (point, whom) in kills.items():
    commands.kill(point, round, whom)
    commands.gate(round)
    commands.gone('server')
    assert not (commands.faults / 'kill').exists()
    assert commands.charged() == round and len(commands.records()) == round - 1
    if whom == 'engine':
      assert commands.running['server'].returncode == 1
      assert commands.said('server').splitlines()[-1].startswith('fedjax-mem: failed: the engine')
      commands.interrupted()
    commands.gate(round - 1)
    jobs = commands.full()
    commands.server(commands.run())
    commands.until_full(jobs)
    commands.until_round(round)
  commands.until_round(6)
  records = commands.records()
  assert [(x['round'], x['clients']) for x in records] == [(i, 2) for i in range(1, 7)]
  assert commands.charged() == 6
  kept = state_of(commands.run())
  assert kept['round'] == 6
  for name, x in simulated(commands.run(), 6).items():
    np.testing.assert_array_equal(kept[name], x, err_msg=name)


def simulated(folder, rounds):
  """Returns what a checkpoint of the same rounds in a simulation would hold, name -> array.

  In a process of its own: the tests compile without most optimizations, and these differ in bits.
  """
  file = folder.parents[1] / 'simulated.npz'  # beside the folder of runs
  path = os.pathsep.join((str(ROOT / 'tests'), str(ROOT)))
  subprocess.run(
    [sys.executable, '-c', SIMULATION, folder, str(rounds), file],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': path},
    check=True,
    timeout=LONG,
  )
  return dict(np.load(file))


def test_clients_killed_or_late_are_left_out_until_they_are_back(commands):
  late = commands.processes('a')
  for process in late:
    process.suspend()
  commands.until_round(7)
  for process in late:
    process.resume()
  worker = commands.worker('b')
  worker.suspend()  # so that it is killed inside the round
  commands.gate(8)
  until(lambda: commands.charged() == 8, LONG, 'round 8 was begun')
  commands.running['b'].kill()  # the command alone
  commands.gone('b')
  until(lambda: len(commands.records()) == 8, LONG, 'round 8 has ended')
  jobs = commands.full()
  commands.client('b')  # the driver ends the job that cannot reach it
  commands.until_full(jobs)
  commands.until_round(9)
  commands.worker('a').kill()  # the engine ends the job
  commands.until_full(jobs + 1)
  commands.until_round(10)
  records = commands.records()
  assert [x['round'] for x in records] == list(range(1, 11))
  assert [x['clients'] for x in records[6:]] == [1, 1, 2, 2]


def test_a_run_ends_without_a_client_that_was_interrupted(commands):
  commands.running['b'].send_signal(signal.SIGINT)
  commands.gone('b')
  assert commands.running['b'].returncode == 130
  assert commands.said('b').splitlines()[-1] == 'fedjax-mem: interrupted: stopped by Ctrl-C'
  commands.gate(12)
  for name in ('server', 'a'):
    assert commands.running[name].wait(LONG) == 0, commands.said(name)
    commands.gone(name)
  assert commands.said('a').endswith('a: the run has ended after round 12\n')
  records = commands.records()
  assert [x['round'] for x in records] == list(range(1, 13)) and commands.charged() == 12
  assert [x['clients'] for x in records[10:]] == [1, 1]
  assert all(x['refused'] == 0 for x in records)
