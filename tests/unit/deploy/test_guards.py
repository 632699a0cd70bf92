"""What the engine would do for any client of a deployment, and must not."""

import types

import pytest

from fedjax_mem.deploy import engine

pytestmark = pytest.mark.slow  # they need NVIDIA FLARE


def message(origin, target='server', channel='task', topic='heart_beat', streamed=False):
  from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey
  from nvflare.fuel.f3.message import Message
  from nvflare.fuel.f3.streaming.stream_const import STREAM_CHANNEL, StreamHeaderKey

  headers = {MessageHeaderKey.ORIGIN: origin, MessageHeaderKey.DESTINATION: target}
  keys = StreamHeaderKey if streamed else MessageHeaderKey
  if streamed:
    headers[MessageHeaderKey.CHANNEL] = STREAM_CHANNEL
  return Message(headers | {keys.CHANNEL: channel, keys.TOPIC: topic})


def refused(*args, **more):
  from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode

  from fedjax_mem.deploy.guards import refusal

  reply = refusal(message(*args, **more))
  if reply is None:
    return False
  assert reply.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.UNAUTHENTICATED
  return True


@pytest.mark.parametrize('streamed', [False, True])
def test_clients_reach_the_server_alone(streamed):
  assert not refused('a', streamed=streamed)
  assert not refused('a.job', 'server.job', 'server_command', 'get_task', streamed=streamed)
  assert not refused('server', 'a', 'admin', streamed=streamed)
  assert not refused('server.job', 'a.job', 'aux_communication', streamed=streamed)
  assert not refused('a.job', 'a', streamed=streamed)
  for target in ('b', 'b.job', ''):
    assert refused('a', target, 'admin', streamed=streamed)
    assert refused('a.job', target, 'aux_communication', streamed=streamed)


@pytest.mark.parametrize('streamed', [False, True])
def test_clients_do_not_manage_the_server(streamed):
  assert not refused('a', 'server', '_net_manager', 'heartbeat', streamed=streamed)
  assert not refused('server', 'a', '_net_manager', 'stop', streamed=streamed)
  for topic in ('stop', 'stop_cell', 'cells', 'process_info'):
    assert refused('a', 'server', '_net_manager', topic, streamed=streamed)
    assert refused('a', 'server.job', '_net_manager', topic, streamed=streamed)


@pytest.fixture
def agent(monkeypatch):
  """A client's agent under the guard, that notes what gets through to the engine."""
  from nvflare.private.fed.client.admin import FedAdminAgent

  from fedjax_mem.deploy import guards

  through = []
  monkeypatch.setattr(
    FedAdminAgent, '_dispatch_request', lambda self, request: through.append(request.payload.topic)
  )
  guards.guard_requests()

  def asked(origin, topic):
    request = message(origin, 'a', 'admin')
    request.payload = types.SimpleNamespace(topic=topic)
    return FedAdminAgent._dispatch_request(None, request)

  return asked, through


def test_a_client_runs_jobs_for_its_server(agent):
  from fedjax_mem.deploy import guards

  asked, through = agent
  for topic in sorted(guards.REQUESTS):
    asked('server', topic)
  assert through == sorted(guards.REQUESTS)


@pytest.mark.parametrize(
  ('origin', 'topic'),
  [
    ('server', 'sys.shell'),
    ('server', 'train.shutdown'),
    ('server', 'train.configure_job_log'),
    ('b', 'train.deploy'),
    ('b', 'train.abort'),
    ('server.job', 'train.deploy'),
    ('_admin_1', 'train.deploy'),
  ],
)
def test_a_client_does_nothing_else_for_anybody(agent, origin, topic):
  asked, through = agent
  reply = asked(origin, topic)
  assert through == [] and 'only runs jobs of its server' in reply.payload.body


def test_what_the_client_runs_jobs_by_is_what_the_engine_calls_it():
  from nvflare.private.defs import SysCommandTopic, TrainingTopic

  from fedjax_mem.deploy import guards

  known = {v for k, v in vars(TrainingTopic).items() if not k.startswith('_')}
  assert known >= guards.REQUESTS
  assert SysCommandTopic.SHELL not in guards.REQUESTS


def test_only_the_driver_logs_in(monkeypatch):
  from nvflare.fuel.hci.server import login
  from reference import kits

  from fedjax_mem.deploy import guards

  monkeypatch.setattr(login, 'validate_admin_leaf_cert', login.validate_admin_leaf_cert)
  guards.guard_login()
  authority = kits.Authority()

  def certificate(name, role):
    return authority._issue(name, authority.key, (-1, 1), role=role)

  login.validate_admin_leaf_cert(certificate(engine.DRIVER, engine.ROLE))
  for name, role in (('a', None), ('a', engine.ROLE), (engine.DRIVER, None)):
    with pytest.raises(ValueError, match='may submit jobs and ask the server'):
      login.validate_admin_leaf_cert(certificate(name, role))


@pytest.mark.parametrize('role', ['server', 'client'])
def test_nothing_runs_where_a_guard_has_no_place(role, monkeypatch):
  from nvflare.fuel.hci.server import login
  from nvflare.private.fed.client.admin import FedAdminAgent

  from fedjax_mem.deploy import guards

  monkeypatch.delattr(login, 'validate_admin_leaf_cert')
  monkeypatch.delattr(FedAdminAgent, '_dispatch_request')
  with pytest.raises(RuntimeError, match='this version of nvflare has no'):
    guards.install(role)
