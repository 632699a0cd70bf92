"""The command of a client's machine, with an engine of this process in place of the real one."""

import json
import types

import pytest
from reference import deployed

from fedjax_mem.deploy import joining, processes
from fedjax_mem.deploy.kit import Kit


@pytest.fixture
def kit(tmp_path):
  return Kit.open(deployed.kits(tmp_path, ('a', 'b'))['a'], 'client')


@pytest.fixture
def engines(kit, monkeypatch):
  """Returns the engines that were started, each of which does what `does` says and ends."""
  started = types.SimpleNamespace(places=[], does=lambda place: None, probed=[], refused=None)

  class Engine:
    log = 'log'

    def __init__(self, kit, work, place, lock):
      self._looks = 0
      started.places.append(place)

    def __enter__(self):
      started.does(started.places[-1])
      return self

    def __exit__(self, *error):
      del error

    def code(self):
      self._looks += 1
      return None if self._looks < 2 else 1

    def registered(self):
      return False

    def refused(self):
      return started.refused if self._looks > 1 else None  # it says so, and has ended

  monkeypatch.setattr(joining, 'Engine', Engine)
  monkeypatch.setattr(joining, '_LOOK', 0.0)
  monkeypatch.setattr(joining.certificates, 'probe', lambda kit, wait: started.probed.append(wait))
  return started


def says(status, line):
  def does(place):
    with open(place['outcome'], 'w') as file:
      json.dump({'status': status, 'line': line}, file)

  return does


def join(kit, **options):
  return joining.join(kit, say=lambda line: None, **options)


def test_the_last_word_of_the_server_is_returned_on_one_line(kit, engines):
  engines.does = says('finished', 'the run\nhas ended \x1b[31m')
  assert join(kit, require='local', allow=('mine',)) == 'the run has ended  [31m'
  (place,) = engines.places
  assert (place['require'], place['allow'], place['repeatable']) == ('local', ['mine'], False)
  assert engines.probed == [60.0]


@pytest.mark.parametrize(('status', 'error'), [('refused', ValueError), ('failed', RuntimeError)])
def test_a_refusal_and_a_failure_end_the_command(status, error, kit, engines):
  engines.does = says(status, 'why')
  with pytest.raises(error, match='why'):
    join(kit)
  assert len(engines.places) == 1


def test_a_client_that_the_server_does_not_admit_says_so_and_ends(kit, engines):
  engines.refused = 'the server has revoked this client'
  with pytest.raises(ValueError, match='the server has revoked this client'):
    join(kit)
  assert len(engines.places) == 1


def test_what_an_earlier_run_has_said_is_not_taken_for_this_one(kit, engines):
  kit.work.mkdir()
  for path in (kit.taken, kit.standing):
    path.write_text('1')
  says('finished', 'of old')({'outcome': kit.work / 'outcome.json'})
  with pytest.raises(RuntimeError, match='has ended 5 times'):
    join(kit)
  assert len(engines.places) == 5 and not kit.taken.exists()


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'data': 'nothing'}, '--data must be a file or folder'),
    ({'require': 'much'}, 'require must be one of'),
    ({'pin': 'nothing.toml'}, 'nothing.toml'),
    ({'allow': ('not a module',)}, 'allow'),
  ],
)
def test_bad_input_is_said_before_the_server_is_looked_for(options, words, kit, engines):
  with pytest.raises((ValueError, FileNotFoundError), match=words):
    join(kit, **options)
  assert engines.places == engines.probed == []


def test_a_second_client_with_one_kit_is_refused_and_takes_nothing_of_the_first(
  kit, engines, monkeypatch
):
  outcome = kit.work / 'outcome.json'

  def while_it_waits(*_):
    outcome.write_text('{}')
    with pytest.raises(ValueError, match='only one may run with a kit'):
      join(kit)
    assert outcome.exists()
    raise ConnectionError('nobody listens')

  monkeypatch.setattr(joining.certificates, 'probe', while_it_waits)
  with pytest.raises(ConnectionError, match='nobody listens'):
    join(kit)
  processes.locked(kit.work).release()  # it holds the kit no longer
  assert engines.places == []
