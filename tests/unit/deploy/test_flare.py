"""What an exchange takes of what the engine brings; tests/system has the engine itself."""

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
  import json

  from fedjax_mem.deploy import flare

  flare.tell({'outcome': str(tmp_path / 'outcome')}, 'failed', 'one\n  two')
  assert json.loads((tmp_path / 'outcome').read_text()) == {'status': 'failed', 'line': 'one two'}
  flare.tell({}, 'failed', 'nobody looks for it')
