"""Processes meet before jax starts: who does not come, and what differs, is named everywhere."""

import socket
import threading

import pytest

from fedjax_mem.runner import meeting


def free_port():
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return probe.getsockname()[1]


def met(facts, wait=5.0, processes=None):
  """Returns what each process says, None where it met the others; `facts` by process."""
  count = processes or len(facts)
  port, said = free_port(), {}

  def one(process):
    try:
      meeting.meet(f'127.0.0.1:{port}', process, count, facts[process], wait)
      said[process] = None
    except ValueError as error:
      said[process] = str(error)

  threads = [threading.Thread(target=one, args=(i,)) for i in facts]
  for x in threads:
    x.start()
  for x in threads:
    x.join()
  return said


def test_all_that_are_alike_meet():
  assert met({i: {'jax': '1'} for i in range(3)}) == dict.fromkeys(range(3))
  assert met({0: {'jax': '1'}}) == {0: None}


@pytest.mark.parametrize('name', ['jax', 'fedjax_mem', 'configuration'])
def test_a_difference_is_refused_on_all_and_names_process_and_both_values(name):
  facts = {i: {'jax': '1', 'fedjax_mem': '2', 'configuration': 'abc'} for i in range(3)}
  facts[2] = {**facts[2], name: 'other'}
  said = met(facts)
  assert len(set(said.values())) == 1
  words = f"must have the same {name}, got 'other' on process 2 and {facts[0][name]!r} on process 0"
  assert words in said[0]


def test_a_process_that_does_not_come_is_named_on_all():
  said = met({0: {}, 2: {}}, wait=1.0, processes=4)
  assert set(said) == {0, 2} and 'number(s) 1, 3' in said[0] and said[2] == said[0]
  assert 'process 0 of 2 must answer' in met({1: {}}, wait=0.5, processes=2)[1]


def test_a_port_that_is_taken_is_named():
  with socket.create_server(('', 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(ValueError, match=f'port {port} of the coordinator must be free'):
      meeting.meet(f'127.0.0.1:{port}', 0, 2, {}, 1.0)


def test_who_does_not_belong_here_does_not_disturb():
  port = free_port()
  said = []

  def lead():
    try:
      meeting.meet(f'127.0.0.1:{port}', 0, 2, {}, 5.0)
    except ValueError as error:
      said.append(str(error))

  leader = threading.Thread(target=lead)
  leader.start()
  for words in (b'GET / HTTP/1.1\r\n', b'{"process": 7, "facts": {}}\n', b'[1]\n'):
    while True:
      try:
        with socket.create_connection(('127.0.0.1', port), 5) as link:
          link.sendall(words)
        break
      except ConnectionRefusedError:
        continue
  meeting.meet(f'127.0.0.1:{port}', 1, 2, {}, 5.0)
  leader.join()
  assert said == []
