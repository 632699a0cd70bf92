"""The engine of deployments: real processes on this machine, over mutual TLS.

They share one deployment; the order of the tests is that of its life.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time

import pytest
from reference import deployment, kits

from fedjax_mem.deploy import certificates, engine, jobs, processes, standing
from fedjax_mem.deploy.kit import Kit

pytestmark = pytest.mark.slow
SCRIPT = [['hello', 30], ['again', 5], ['sleep', 0.5], ['late', 10], ['fail', 5], [10**6, 10]]


@pytest.fixture(scope='module')
def running(tmp_path_factory):
  """A server and three clients, registered."""
  made = deployment.Deployment(tmp_path_factory.mktemp('deployment'), ['a', 'b', 'c'])
  try:
    made.start('server', script=SCRIPT)
    for name in made.clients:
      made.start(name, fails=name == 'c', refuse='b will not' if name == 'b' else '')
    certificates.probe(made.kit('a'), 30)
    with jobs.Driver(made.kit('server'), made.work) as driver:
      made.driver = driver
      deployment.until(lambda: driver.clients() == {'a', 'b', 'c'}, 30, 'all clients registered')
      yield made
  finally:
    made.stop()


def finished(made, job, seconds=90):
  """Returns the engine's word for a job that has ended."""
  ended = deployment.until(
    lambda: (status := made.driver.status(job)).startswith('FINISHED') and status, seconds, 'end'
  )
  return ended


def test_exchanges_reach_each_client_and_a_refusal_ends_nothing(running):
  job = running.driver.submit(running.job())
  assert finished(running, job) == 'FINISHED:COMPLETED'
  assert running.outcome() == {'status': 'finished', 'line': ''}
  hello, again, sleep, late, fail, large = (x['answers'] for x in running.rounds())
  # b refused the job, told its own command, and the others went on.
  assert hello == {'a': 'payload hello a', 'c': 'payload hello c'}
  assert running.outcome('b') == {'status': 'refused', 'line': 'b will not'}
  assert again == {'a': 'payload again a', 'c': 'payload again c'}
  # What came after the time of its exchange counts in no other one.
  assert sleep == {}
  assert late == {'a': 'payload late a', 'c': 'payload late c'}
  # A client that fails once answers again later.
  assert fail == {'a': 'payload fail a'}
  assert running.outcome('c') == {'status': 'failed', 'line': 'RuntimeError: it fails'}
  assert large == dict.fromkeys('ac', f'payload {"x" * 32}')


def other_class(file, key):
  """Returns a change of a job that has it name a class of others."""

  def change(job):
    path = job / 'app' / 'config' / file
    content = json.loads(path.read_text())
    evil = {'path': 'subprocess.Popen', 'args': {'args': ['touch', str(job / 'run')]}}
    if key == 'components':
      content[key] = [{'id': 'x'} | evil]
    else:
      content[key][0] = {'tasks': ['blob'], 'executor': evil}
    path.write_text(json.dumps(content))

  return change


def own_code(job):
  (job / 'app' / 'custom').mkdir()
  (job / 'app' / 'custom' / 'evil.py').write_text(f'open({str(job / "run")!r}, "w")')


def unsigned(real, folder, *rest):
  del real, folder, rest


def altered(real, folder, *rest):
  real(folder, *rest)
  for path in pathlib.Path(folder).rglob('job.bin'):
    path.write_bytes(b'other')


def by_a_client(running):
  from nvflare.lighter.utils import load_private_key_file

  def sign(real, folder, *rest):
    startup = running.kit('c').startup
    real(folder, load_private_key_file(startup / 'client.key'), str(startup / 'client.crt'))

  return sign


@pytest.mark.parametrize(
  ('change', 'sign', 'reason'),
  [
    (other_class('config_fed_client.json', 'executors'), None, 'a job must name'),
    (other_class('config_fed_client.json', 'components'), None, 'a job must name'),
    (other_class('config_fed_server.json', 'components'), None, 'a job must name'),
    (own_code, None, 'BYOC|must hold the files'),
    (None, unsigned, 'a job must be signed by the driver'),
    (None, altered, 'does not pass signature verification'),
    (None, 'by a client', "only driver@fedjax-mem.org may submit jobs .*, got .'c'"),
  ],
  ids=['executor', 'component', 'on-the-server', 'own-code', 'unsigned', 'altered', 'by-a-client'],
)
def test_a_job_that_is_not_ours_runs_nowhere(running, monkeypatch, change, sign, reason):
  from nvflare.fuel.hci.client import file_transfer

  if sign:
    real = file_transfer.sign_folders
    sign = by_a_client(running) if sign == 'by a client' else sign
    monkeypatch.setattr(file_transfer, 'sign_folders', lambda *args: sign(real, *args))
  began, folder = time.monotonic(), running.job(change)
  job = running.driver.submit(folder)
  assert finished(running, job, 15) == 'FINISHED:FAILED_TO_RUN'
  assert time.monotonic() - began < 15
  said = ' '.join(running.driver.details(job))
  assert said and re.search(reason, said)
  assert not (folder / 'run').exists()
  assert running.driver.clients() == {'a', 'b', 'c'}


def test_who_has_no_certificate_of_the_ca_is_hung_up_on(running, tmp_path):
  """By the engine itself, whatever a kit's own check says."""
  a, authority = running.kit('a'), kits.Authority.load(running.kits / 'ca')
  cases = {
    'another CA': lambda folder: kits.Authority().issue(folder, 'client', 'a'),
    'expired': lambda folder: authority.issue(folder, 'client', 'a', (-9, -1)),
  }
  for name, issue in cases.items():
    folder = tmp_path / name
    shutil.copytree(a.path, folder, ignore=shutil.ignore_patterns('work'))
    issue(folder / 'startup')
    shutil.copy(a.startup / 'rootCA.pem', folder / 'startup')
    began = time.monotonic()
    with pytest.raises(ValueError, match='must take the certificate of this kit'):
      certificates.probe(Kit.open(folder, 'client'), 5)
    assert time.monotonic() - began < 5
  for port in (a.port, a.admin_port):
    anybody = ssl.create_default_context(cafile=str(a.startup / 'rootCA.pem'))
    anybody.set_alpn_protocols(['h2'])
    plain, none = (socket.create_connection(('localhost', port), 5) for _ in range(2))
    for client in (plain, anybody.wrap_socket(none, server_hostname='localhost')):
      with client, contextlib.suppress(ConnectionError, ssl.SSLError):
        client.sendall(certificates._HELLO)
        assert client.recv(64) == b'', 'somebody without a certificate got an answer'


def session(running, tmp_path, user, startup):
  """Logs in at the server's port for its driver."""
  folder = tmp_path / 'login'
  jobs._lay_out(running.kits / 'server' / 'driver' / 'startup', folder)
  for name in ('client.crt', 'client.key'):
    (folder / 'startup' / name).unlink()
    (folder / 'startup' / name).symlink_to(startup / name)
  return jobs._session(user, folder, 3)


@pytest.mark.parametrize('user', ['c', engine.DRIVER])
def test_a_client_may_not_log_in_where_jobs_are_submitted(running, tmp_path, user):
  began = time.monotonic()
  with pytest.raises(Exception, match=r'Incorrect user name|client_registration'):
    session(running, tmp_path, user, running.kit('c').startup)
  assert time.monotonic() - began < 15


def test_a_client_cannot_pose_as_another(running, tmp_path):
  posing = tmp_path / 'posing'
  shutil.copytree(running.kits / 'c', posing, ignore=shutil.ignore_patterns('work'))
  facts = json.loads((posing / 'kit.json').read_text()) | {'name': 'b'}
  (posing / 'kit.json').write_text(json.dumps(facts))
  server = running.engines['server'].log

  def told():
    return "authenticated as 'c' but claimed endpoint 'b'" in server.read_text()

  with pytest.raises(ValueError, match=r'sign.key of .* must fit keys.json'):
    Kit.open(posing, 'client').check()
  running.start('posing', Kit.open(posing, 'client'), tmp_path / 'work')
  try:
    deployment.until(told, 15, 'the server refuses')
  finally:
    running.engines.pop('posing').stop()
  deployment.until(lambda: running.driver.clients() == {'a', 'b', 'c'}, 30, 'all are there')


def test_a_client_gets_nothing_from_another_one(running, tmp_path, monkeypatch):
  """The engine by itself would show it the other one's private key, and shut that one down."""
  monkeypatch.setenv('FEDJAX_MEM_ROGUE', str(tmp_path))
  rogue = running.start('c')
  monkeypatch.delenv('FEDJAX_MEM_ROGUE')
  deployment.until(rogue.registered, 20, 'c is back')
  (tmp_path / 'new').write_text('a')
  (tmp_path / 'new').rename(tmp_path / 'go')
  file = tmp_path / 'answers.json'
  deployment.until(file.exists, 20, 'it has asked')
  answers = json.loads(file.read_text())
  assert [x[:2] for x in answers] == [
    ['a', 'sys.shell'],
    ['a', 'train.check_status'],
    ['a', 'train.shutdown'],
    ['server', 'process_info'],
  ]
  assert [x[2] for x in answers] == [None] * 4
  assert running.engines['a'].code() is None
  assert running.driver.clients() == {'a', 'b', 'c'}


def test_a_killed_client_is_noticed_and_takes_part_in_the_next_job(running):
  running.tell_server(script=[], linger=True)
  deployment.until(running.start('b').registered, 20, 'b is back')
  job = running.driver.submit(running.job())
  deployment.until(lambda: _answered(running) == {'a', 'b', 'c'}, 30, 'all three answer')
  began = time.monotonic()
  os.kill(running.engines['b'].pid, signal.SIGKILL)
  deployment.until(lambda: not running.engines['b'].members(), 3, "b's job ends with it")
  running.start('b')
  deployment.until(lambda: _connected(running) == {'a', 'c'}, 20, 'b is missed in the job')
  assert time.monotonic() - began < 16
  # It is registered again, but not of the running job: the driver sees the difference.
  assert running.driver.clients() == {'a', 'b', 'c'}
  assert running.driver.status(job) == 'RUNNING'
  running.driver.abort(job)
  finished(running, job)
  running.record.unlink()
  job = running.driver.submit(running.job())
  deployment.until(lambda: _answered(running) == {'a', 'b', 'c'}, 30, 'all three answer')
  running.job_that_runs = job


def _connected(running):
  rounds = running.rounds()
  return set(rounds[-1]['connected']) if rounds else None


def _answered(running):
  rounds = running.rounds()
  return set(rounds[-1]['answers']) if rounds else None


def test_the_server_shows_how_it_stands_and_shuts_a_client_out(running):
  kit = running.kit('server')
  lines = standing.status(kit)
  assert lines[0] == f'server: running, localhost:{kit.port}'
  assert lines[1] == f'job: {running.job_that_runs}'

  def stand():
    return [line.partition(': ')[2] for line in standing.status(kit)[-3:]]

  # On a busy machine a client may have been late with a sign of life.
  deployment.until(lambda: stand() == ['connected'] * 3, 20, 'all are connected')
  assert standing.revoke(kit, 'b') == (
    'b is revoked from the next round on; the server admits it no more'
  )
  assert running.driver.clients() == {'a', 'c'}
  b = running.start('b')
  refusal = deployment.until(b.refused, 15, 'b is told')
  assert refusal.startswith('the server has revoked this client') and '\n' not in refusal
  assert running.driver.clients() == {'a', 'c'}


def test_only_one_engine_runs_with_a_kit(running):
  kit = running.kit('a')
  with pytest.raises(ValueError, match='is in use by another process'):
    processes.Engine(kit, kit.work, {})
  assert processes.place(kit.work)['outcome'].endswith('a.json')


def test_a_client_whose_starter_is_killed_leaves_nothing(running):
  running.engines.pop('a').stop()
  code = (
    'import sys, time; from fedjax_mem.deploy.kit import Kit;'
    'from fedjax_mem.deploy.processes import Engine;'
    'kit = Kit.open(sys.argv[1], "client"); engine = Engine(kit, kit.work, {});'
    'print(engine.pid, flush=True); time.sleep(60)'
  )
  with subprocess.Popen(
    [sys.executable, '-c', code, str(running.kits / 'a')],
    stdout=subprocess.PIPE,
    env=os.environ | {'PYTHONPATH': os.pathsep.join((str(deployment.ECHO), str(deployment.ROOT)))},
  ) as starter:
    pid = int(starter.stdout.readline())
    place = str(running.kit('a').work / 'place.json')
    deployment.until(lambda: pid in processes._told(place), 5, 'a runs')
    log = running.kit('a').work / 'engine.log'
    until = log.read_text().count('Successfully registered client') + 1
    deployment.until(
      lambda: log.read_text().count('Successfully registered client') == until, 20, 'a is admitted'
    )
    starter.kill()
  deployment.until(lambda: not list(processes._told(place)), 5, 'all of a has ended')


def test_nothing_is_left_when_all_is_stopped(running):
  places = [str(running.kit(n).work / 'place.json') for n in ('server', *running.clients)]
  assert any(list(processes._told(place)) for place in places)
  running.stop()
  assert not any(list(processes._told(place)) for place in places)
  assert standing.status(running.kit('server'))[0].startswith('server: not running')
