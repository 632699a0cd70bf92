"""What processes agree on, over a channel that stands in for that of jax."""

import json
import threading
import time

import jax
import numpy as np
import pytest

from fedjax_mem.runner import cluster
from fedjax_mem.runner.cluster import Broken, Cluster


class Channel:
  """Keys and values, as the client of `jax.distributed` has them."""

  def __init__(self):
    self.held, self.seen, self.changed, self.waited = {}, {}, threading.Condition(), 0

  def key_value_set(self, name, value, allow_overwrite=False):
    with self.changed:
      assert allow_overwrite or name not in self.seen, name  # jax refuses to overwrite
      self.held[name] = self.seen[name] = value
      self.changed.notify_all()

  def blocking_key_value_get(self, name, milliseconds):
    with self.changed:
      if not self.changed.wait_for(lambda: name in self.held, min(milliseconds, 200) / 1000):
        self.waited += 1
        assert self.waited < 200, name  # for ever
        raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: ' + name)
      return self.held[name]

  def key_value_try_get(self, name):
    if name not in self.held:
      raise jax.errors.JaxRuntimeError('NOT_FOUND: ' + name)
    return self.held[name]

  def key_value_delete(self, name):
    with self.changed:
      for held in [x for x in self.held if x == name or x.startswith(f'{name}/')]:
        del self.held[held]


@pytest.fixture
def channel(monkeypatch):
  made = Channel()
  monkeypatch.setattr(cluster, '_client', lambda: made)
  return made


def on_all(work, processes=3):
  """Returns what `work` gives on each process, errors as they are."""
  given = {}

  def one(process):
    try:
      given[process] = work(Cluster(process, processes))
    except Exception as error:
      given[process] = error

  threads = [threading.Thread(target=one, args=(i,)) for i in range(processes)]
  for x in threads:
    x.start()
  for x in threads:
    x.join()
  return [given[i] for i in range(processes)]


def test_all_get_what_process_0_says_and_old_words_are_deleted(channel):
  def work(one):
    said = []
    for i in range(cluster._KEPT):
      said.append(one.agree(one.process * 100 + i))
      one.all(None)
    return said

  found = on_all(work)
  assert found[0] == found[1] == found[2] == list(range(cluster._KEPT))
  assert len(channel.held) == cluster._KEPT // 2 * (1 + 3)


def test_alone_nothing_is_sent(channel):
  one = Cluster()
  assert one.agree(3) == 3 and one.all(3) == [3] and one.together(lambda: 4, dict) == 4
  assert one.root(np.ones(2, np.uint32)).tolist() == [1, 1] and not channel.seen


def test_all_get_what_each_says(channel):
  del channel
  assert on_all(lambda one: one.all([one.process])) == [[[0], [1], [2]]] * 3


@pytest.mark.parametrize(
  ('error', 'kind'), [(ValueError('bad'), ValueError), (OSError('full'), Broken)]
)
def test_what_ends_process_0_ends_those_that_wait_for_it(channel, error, kind):
  del channel

  def work(one):
    if one.leads:
      one.refuse(error)
      raise error
    return one.agree(None)

  found = on_all(work)
  assert all(isinstance(x, kind) and str(x) == str(error) for x in found[1:])


@pytest.mark.parametrize('wait', ['agree', 'all', 'root'])
def test_a_refusal_is_heard_wherever_a_process_waits_and_another_run_may_follow(channel, wait):
  del channel
  waits = {
    'agree': lambda one: one.agree(None),
    'all': lambda one: one.all(None),
    'root': lambda one: one.root(np.zeros(2, np.uint32)),
  }

  def work(one):
    said = []
    for number in range(3):
      try:
        if one.leads:
          raise ValueError(f'no {number}')
        waits[wait](one)
      except ValueError as error:
        one.refuse(error)
        said.append(str(error))
    return said, one.agree(one.process + 7), one.all(one.process)

  assert on_all(work) == [(['no 0', 'no 1', 'no 2'], 7, [0, 1, 2])] * 3


def test_what_all_raise_by_themselves_leaves_them_in_step(channel):
  del channel

  def work(one):
    for error in (ValueError('all'), RuntimeError('all')):
      one.refuse(error)
    with pytest.raises(ValueError, match='the same data'):
      one.together(lambda: one, lambda made: {'data': made.process})
    one.refuse(ValueError())
    return one.agree(one.process + 7)

  assert on_all(work) == [7, 7, 7]


def test_what_one_process_refuses_all_refuse_with_its_words(channel):
  del channel

  def work(one):
    def make():
      if one.process == 1:
        raise ValueError('no data here')
      return one.process

    return one.together(make, lambda made: {})

  found = on_all(work)
  assert [str(x) for x in found] == [
    'process 1: no data here',
    'no data here',
    'process 1: no data here',
  ]


def test_other_data_are_refused_by_process_and_difference(channel):
  del channel
  work = lambda one: one.together(
    lambda: one, lambda made: {'data': 'b' if made.process == 2 else 'a'}
  )
  for said in on_all(work):
    assert isinstance(said, ValueError)
    assert "the same data, got 'b' on process 2 and 'a' on process 0" in str(said)


def test_the_secret_root_of_process_0_is_shared_and_does_not_stay_on_the_channel(channel):
  own = lambda one: np.array([one.process, 7], np.uint32)
  found = on_all(lambda one: one.root(own(one)))
  assert [x.tolist() for x in found] == [[0, 7]] * 3 and found[1].dtype == np.uint32
  root = json.dumps([0, 7])
  assert root in channel.seen.values() and root not in channel.held.values()


def test_what_asks_any_process_to_end_reaches_process_0(channel):
  first, other = Cluster(0, 2), Cluster(1, 2)
  assert first.asked(None) is None and other.asked(None) is None and not channel.held
  assert other.asked(['SIGTERM', 143]) is None and other.asked(['SIGHUP', 129]) is None
  assert first.asked(None) == ['SIGHUP', 129] and first.asked(['Ctrl-C', 130]) == ['Ctrl-C', 130]
  for each in (first, other):
    each.refuse(KeyboardInterrupt())  # the run ends
  assert first.asked(None) is None
  other.asked(['SIGTERM', 143])  # of a run that ends well before it is heard
  for each in (first, other):
    each.agree(each.process)
    each.begin()
  assert first.asked(None) is None
  assert Cluster().asked(['Ctrl-C', 130]) == ['Ctrl-C', 130] and Cluster().asked(None) is None


def test_others_stay_until_process_0_is_done(channel, monkeypatch):
  done, waits = [], []
  get = channel.blocking_key_value_get

  def wait(name, milliseconds):
    waits.append(milliseconds)
    return get(name, milliseconds)

  def leave(code):
    done.append((threading.current_thread().name, code))

  monkeypatch.setattr(channel, 'blocking_key_value_get', wait)
  monkeypatch.setattr(cluster.os, '_exit', leave)

  def work(one):
    threading.current_thread().name, one.begun = str(one.process), True
    if one.leads:
      time.sleep(0.1)
      done.append('report')  # which may take longer than a heartbeat
    one.leave(0)

  assert on_all(work) == [None] * 3
  assert done[0] == 'report' and {*done[1:]} == {('0', 0), ('1', 0), ('2', 0)}
  assert min(waits) > 1000 * cluster._HEARTBEAT


def test_devices_of_all_are_divided():
  assert cluster.devices_of_each(2, 'auto', 4) == 2 and cluster.devices_of_each(2, 8, 4) == 2
  with pytest.raises(
    ValueError, match=r'execution\.devices must be a multiple of the 4 processes, got 6'
  ):
    cluster.devices_of_each(2, 6, 4)


def test_devices_that_are_asked_for_twice_must_be_the_same():
  divided = cluster.devices_of_each
  assert divided(2, 8, 4, asked=True) == 2 and divided(1, 'auto', 4, asked=True) == 1
  with pytest.raises(ValueError, match=r'--devices must be 2, as the run has 8 devices for 4 p'):
    divided(1, 8, 4, asked=True)
