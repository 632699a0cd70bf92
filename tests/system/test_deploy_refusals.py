"""What the commands of a deployment refuse: one line, exit 2, in time, and the server stays as is.

All share one deployment. First its server waits for clients, and what is refused changes nothing
there. Then one client takes part, and beside it others whose kits or demands do not fit its job.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from reference import deployment, kits

from fedjax_mem.cli.main import main

pytestmark = pytest.mark.slow
CONFIG = """
version = 1
name = 'refusals'
rounds = 100000
[data]
name = 'digits'
partition = 'iid'
num_clients = 6
[model]
name = 'ours:build'
[client]
batch_size = 50
learning_rate = 0.1
[selection]
cohort_size = 6
[weighting]
name = 'equal'
"""
MODEL = """
from fedjax_mem import models
def build(input_shape, num_classes):
  return models.build('logistic', input_shape, num_classes)
"""
GOOD, *BAD = 'good', 'version', 'signature', 'code', 'pin', 'revoked'
LINES = {
  'version': r'both sides must run one version of fedjax_mem, got \S+ on the server and 0\.0\.0',
  'signature': r"the configuration must be signed by the server's key of this kit, got one that",
  'code': r"model\.name .*'ours:build'",
  'pin': r'client\.learning_rate must be 0\.2, as the configuration of --config pins it, got 0\.1',
  'revoked': r'the server has revoked this client; ask whoever runs the server',
}


class Running:
  """The folder of a deployment, and the commands that run."""

  def __init__(self, folder):
    self.folder, self.kits, self.commands = folder, folder / 'kits', {}
    (folder / 'config.toml').write_text(CONFIG)
    (folder / 'ours.py').write_text(MODEL)
    port, admin = deployment.free_ports(2)
    names = ','.join((GOOD, *BAD))
    made = ('keys', str(self.kits), '--clients', names)
    assert main(['deploy', *made, '--port', str(port), '--admin-port', str(admin)]) == 0

  def start(self, name, *command, code=deployment.ROOT):
    """Starts a command in the background; what it says is in a file of this name."""
    paths = os.pathsep.join((str(code), str(self.folder)))
    with (self.folder / f'{name}.out').open('w') as out:
      self.commands[name] = subprocess.Popen(
        [sys.executable, '-m', 'fedjax_mem', 'deploy', *map(str, command)],
        stdout=out,
        stderr=subprocess.STDOUT,
        cwd=self.folder,
        env=os.environ | {'PYTHONPATH': paths},
      )

  def said(self, name):
    return (self.folder / f'{name}.out').read_text()

  def run(self):
    """Returns the run's folder."""
    (run,) = (self.folder / 'runs').iterdir()
    return run

  def rounds(self):
    """Returns the records of the run's rounds."""
    path = self.run() / 'metrics.jsonl'
    lines = path.read_text().splitlines()[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]

  def stop(self):
    for command in self.commands.values():
      command.terminate()
    for command in self.commands.values():
      command.wait(20)


@pytest.fixture(scope='module')
def running(tmp_path_factory):
  """A server that waits for its clients."""
  made = Running(tmp_path_factory.mktemp('refusals'))
  try:
    made.start('server', 'server', 'config.toml', '--kit', made.kits / 'server')
    deployment.until(lambda: 'waiting for clients' in made.said('server'), 90, 'the server is up')
    yield made
  finally:
    made.stop()


def copied(running, tmp_path, name=GOOD):
  """Returns a copy of a client's kit."""
  return shutil.copytree(
    running.kits / name, tmp_path / 'kit', ignore=shutil.ignore_patterns('work')
  )


def another_ca(running, kit):
  kits.Authority().issue(kit / 'startup', 'client', GOOD)


def signed_by_another_ca(running, kit):
  root = (kit / 'startup' / 'rootCA.pem').read_bytes()
  another_ca(running, kit)
  (kit / 'startup' / 'rootCA.pem').write_bytes(root)


def expired(running, kit):
  kits.Authority.load(running.kits / 'ca').issue(kit / 'startup', 'client', GOOD, (-9, -1))


def none(running, kit):
  (kit / 'startup' / 'client.crt').unlink()
  (kit / 'startup' / 'client.key').unlink()


def of_another_client(running, kit):
  for name in ('client.crt', 'client.key'):
    shutil.copy(running.kits / 'pin' / 'startup' / name, kit / 'startup' / name)


def posing(running, kit):
  facts = json.loads((kit / 'kit.json').read_text())
  (kit / 'kit.json').write_text(json.dumps(facts | {'name': 'pin'}))


def readable(running, kit):
  (kit / 'sign.key').chmod(0o644)


@pytest.mark.parametrize(
  ('change', 'line'),
  [
    (another_ca, "must have a certificate of the kit's CA for 'localhost'"),
    (signed_by_another_ca, "must be signed by the kit's CA"),
    (expired, 'must be valid now, got one that expired'),
    (none, 'client.key must be there'),
    (of_another_client, "must be of 'good', got one of 'pin'"),
    (posing, 'sign.key of .* must fit keys.json'),
    (readable, 'must be readable by its owner alone, got mode 644: chmod 600'),
  ],
)
def test_a_kit_that_does_not_fit_gets_nowhere(running, tmp_path, capsys, change, line):
  kit = copied(running, tmp_path)
  change(running, kit)
  refused(capsys, line, 'client', '--kit', kit)
  assert unchanged(running)


def test_no_tls_and_no_server(running, tmp_path, capsys):
  kit = copied(running, tmp_path)
  facts = json.loads((kit / 'kit.json').read_text())
  with socket.create_server(('localhost', 0)) as plain:
    (kit / 'kit.json').write_text(json.dumps(facts | {'port': plain.getsockname()[1]}))
    answer = threading.Thread(target=lambda: plain.accept()[0].sendall(b'hello, plain text' * 9))
    answer.start()
    refused(capsys, 'must take the certificate of this kit over TLS', 'client', '--kit', kit)
    answer.join()


@pytest.mark.parametrize(
  ('command', 'line'),
  [
    (
      ('server', 'config.toml', '--kit', GOOD),
      "kit must be that of a server, got the kit of client 'good'",
    ),
    (('status', '--kit', GOOD), 'kit must be that of a server'),
    (('revoke', 'pin', '--kit', GOOD), 'kit must be that of a server'),
    (('client', '--kit', 'server'), "kit must be that of a client, got the kit of server 'server'"),
    (('revoke', 'nobody', '--kit', 'server'), 'NAME must be one of the clients good, '),
    (('server', 'config.toml', '--kit', 'server'), 'is in use by another process'),
    (
      ('client', '--kit', GOOD, '--data', 'gone.npz'),
      '--data must be a file or folder of examples',
    ),
    (('client', '--kit', GOOD, '--require', 'much'), 'require must be one of'),
    (('client', '--kit', GOOD, '--config', 'gone.toml'), 'gone.toml'),
  ],
)
def test_a_command_that_does_not_fit_its_kit(running, capsys, command, line, monkeypatch):
  monkeypatch.chdir(running.folder)
  monkeypatch.syspath_prepend(running.folder)
  folder = running.folder / 'others'
  out = ('--out', folder) if command[0] == 'server' else ()
  at = command.index('--kit') + 1
  refused(capsys, line, *command[:at], running.kits / command[at], *command[at + 1 :], *out)
  assert unchanged(running) and not (running.kits / 'server' / 'revoked.json').exists()


def refused(capsys, line, *command):
  """Checks that a command ends in time, with exit code 2 and one line."""
  began = time.monotonic()
  assert main(['deploy', *map(str, command)]) == 2
  assert time.monotonic() - began < 15
  (said,) = capsys.readouterr().err.splitlines()
  assert re.search(line, said), said


def unchanged(running):
  """Returns whether the server still waits: no round, no ledger, no state, no line in its log."""
  files = {path.name for path in running.run().iterdir()}
  return not files & {'metrics.jsonl', 'ledger.json', 'deploy.log', 'checkpoints'}


def options(running, name):
  """Returns the options of one of the clients, and the package that it runs."""
  given, code = ['--kit', running.kits / name, '--allow', 'ours'], deployment.ROOT
  if name == 'version':
    code = running.folder / 'old'
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(deployment.ROOT / 'fedjax_mem', code / 'fedjax_mem', ignore=ignored)
    (code / 'fedjax_mem' / '_version.py').write_text("__version__ = '0.0.0'\n")
  elif name == 'signature':
    path = running.kits / name / 'keys.json'
    public = json.loads(path.read_text())
    path.write_text(json.dumps(public | {'server': public['pin']}))
  elif name == 'code':
    given = given[:2]
  elif name == 'pin':
    path = running.folder / 'pin.toml'
    path.write_text(CONFIG.replace('learning_rate = 0.1', 'learning_rate = 0.2'))
    given += ['--config', path]
  return given, code


def test_a_client_is_revoked_while_the_server_runs(running, capsys):
  assert main(['deploy', 'revoke', 'revoked', '--kit', str(running.kits / 'server')]) == 0
  assert capsys.readouterr().out == (
    'revoked is revoked from the next round on; the server admits it no more\n'
  )
  assert main(['deploy', 'status', '--kit', str(running.kits / 'server')]) == 0
  assert 'revoked: revoked at ' in capsys.readouterr().out


def test_a_job_that_a_client_does_not_accept_gets_nothing_of_it(running):
  for name in (GOOD, *BAD):
    given, code = options(running, name)
    running.start(name, 'client', *given, code=code)
  commands = [running.commands[name] for name in BAD]
  deployment.until(lambda: all(x.poll() is not None for x in commands), 150, 'all are refused')
  for name in BAD:
    *_, said = running.said(name).splitlines()
    assert running.commands[name].returncode == 2, (name, said)
    assert re.search(LINES[name], said), (name, said)
    assert 'Traceback' not in running.said(name)
  deployment.until(lambda: len(running.rounds()) > 3, 60, 'rounds of the client that is left')
  assert {x['clients'] for x in running.rounds()} == {1}
  assert running.commands[GOOD].poll() is running.commands['server'].poll() is None
