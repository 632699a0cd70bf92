"""What an exchange takes of what the engine brings; tests/system has the engine itself."""

import json
import threading
import types

import pytest

pytestmark = pytest.mark.slow  # they need NVIDIA FLARE


def answered(names=('a', 'b')):
  from fedjax_mem.deploy.flare import _Answered

  return _Answered('now', frozenset(names))


def result(name, blob=b'blob', exchange='now', code='OK'):
  """A task of a client with its result."""
  from nvflare.apis.shareable import Shareable

  content = Shareable()
  content['blob'], content['exchange'] = blob, exchange
  content.set_return_code(code)
  return types.SimpleNamespace(result=content, client=types.SimpleNamespace(name=name))


def test_one_answer_of_each_named_client_counts():
  collected = answered()
  collected.take(result('a', b'first'), None)
  collected.take(result('a', b'second'), None)
  collected.take(result('c'), None)
  assert collected.waiting() == {'b'}
  assert collected.close() == {'a': b'first'}


@pytest.mark.parametrize(
  'wrong',
  [{'exchange': 'before'}, {'code': 'EXECUTION_EXCEPTION'}, {'blob': 'text'}, {'blob': None}],
)
def test_a_wrong_answer_is_dropped_and_not_waited_for(wrong):
  collected = answered()
  collected.take(result('a', **wrong), None)
  assert collected.waiting() == {'b'}
  assert collected.close() == {}


def test_a_result_that_is_none_is_dropped():
  collected = answered()
  collected.take(types.SimpleNamespace(result=None, client=types.SimpleNamespace(name='a')), None)
  assert collected.close() == {}


def test_what_comes_after_the_end_is_dropped():
  collected = answered()
  found = collected.close()
  collected.take(result('a'), None)
  assert found == collected.close() == {}


def test_an_answer_ends_the_waiting():
  collected = answered(['a'])
  threading.Timer(0.05, collected.take, (result('a'), None)).start()
  while collected.waiting():
    collected.wait(10)
  assert collected.close() == {'a': b'blob'}


def test_the_answer_does_not_stay_in_the_engines_task():
  task = result('a')
  answered().take(task, None)
  assert task.result is None


def test_the_line_of_an_outcome_is_one_line(tmp_path):
  from fedjax_mem.deploy import flare

  flare.tell({'outcome': str(tmp_path / 'outcome')}, 'failed', 'one\n  two')
  assert json.loads((tmp_path / 'outcome').read_text()) == {'status': 'failed', 'line': 'one two'}
  flare.tell({}, 'failed', 'nobody looks for it')


@pytest.fixture
def rounds(tmp_path, monkeypatch):
  """The server's side of a job: runs what a test gives, and returns its outcome and end."""
  from fedjax_mem.deploy import flare, serving

  place, panics = tmp_path / 'place.json', []
  place.write_text(json.dumps({'outcome': str(tmp_path / 'outcome'), 'mine': 1}))
  monkeypatch.setenv('FEDJAX_MEM_DEPLOY', str(place))
  controller = flare.Rounds()
  monkeypatch.setattr(controller, 'system_panic', lambda line, ctx: panics.append(line))
  monkeypatch.setattr(controller, 'log_exception', lambda ctx, line: None)

  def run(serve):
    monkeypatch.setattr(serving, 'serve', serve)
    controller.control_flow(None, None)
    return json.loads((tmp_path / 'outcome').read_text()), panics

  return run


@pytest.mark.parametrize('status', ['finished', 'again'])
def test_the_outcome_of_the_rounds_is_told_and_the_job_ends_well(rounds, status):
  def serve(place, link):
    assert place['mine'] == 1
    return status

  assert rounds(serve) == ({'status': status, 'line': ''}, [])


def test_a_refusal_and_a_failure_of_the_rounds_end_the_job_with_their_line(rounds):
  from fedjax_mem.deploy.messages import Refused

  def refuses(place, link):
    raise Refused('not\nlike this')

  def fails(place, link):
    raise RuntimeError('broken')

  assert rounds(refuses)[0] == {'status': 'refused', 'line': 'not like this'}
  outcome, panics = rounds(fails)
  assert outcome == {'status': 'failed', 'line': 'RuntimeError: broken'}
  assert panics == ['not\nlike this', 'RuntimeError: broken']


class Engine:
  """As much of the engine as tells who is of a job."""

  def get_clients(self):
    return [types.SimpleNamespace(name=name) for name in ('a', 'b')]


def test_a_client_is_alive_while_it_gives_signs_of_life(monkeypatch):
  """Also one that the engine holds alive: it was killed, and came back outside of the job."""
  from fedjax_mem.deploy import engine, flare

  clock, told = [100.0], []
  monkeypatch.setattr(flare.time, 'monotonic', lambda: clock[0])
  controller = flare.Rounds()
  controller._engine = Engine()
  controller.communicator = types.SimpleNamespace(
    client_is_active=lambda *facts: told.append(facts),
    get_client_disconnect_time=lambda name: None,
  )
  controller.start_controller(None)
  assert controller.communicator._task_check_period == flare.POLL
  clock[0] += engine.SILENCE + 1  # neither has had time to start yet
  assert controller.alive() == {'a', 'b'}
  controller.communicator.client_is_active('a', 'getTask', None)
  assert told == [('a', 'getTask', None)]
  clock[0] += engine.START
  assert controller.alive() == set()
  controller.communicator.client_is_active('b', 'jobHeartbeat', None)
  assert controller.alive() == {'b'}
  clock[0] += engine.SILENCE - 1
  assert controller.alive() == {'b'}
  controller.communicator.get_client_disconnect_time = lambda name: 1.0
  assert controller.alive() == set()
