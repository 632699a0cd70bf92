"""What a client keeps on its disk: it outlives the process, and it is whole or not there."""

import os
import stat

import jax
import numpy as np
import pytest

from fedjax_mem.core import tree
from fedjax_mem.deploy.memory import NEVER, Memory

ROWS = {'one': {'a': np.arange(3.0, dtype=np.float32)}, 'two': (np.int32(4), np.ones((2, 2)))}
LIKE = tree.shapes(ROWS)


def states(number):
  return jax.tree.map(lambda x: x + np.asarray(number, x.dtype), ROWS)


def same(one, other):
  return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def test_what_was_answered_is_known_after_a_restart(tmp_path):
  memory = Memory(tmp_path, 'run1')
  assert memory.answered == NEVER
  memory.note(6)
  assert memory.answered == 6 and Memory(tmp_path, 'run1').answered == 6
  assert Memory(tmp_path, 'run2').answered == NEVER  # another run


def test_a_mark_that_could_not_be_written_is_not_taken_for_one(tmp_path, monkeypatch):
  memory = Memory(tmp_path, 'run')
  memory.note(1)
  monkeypatch.setattr(os, 'replace', lambda *_: (_ for _ in ()).throw(OSError('full')))
  with pytest.raises(OSError, match='full'):
    memory.note(2)
  assert memory.answered == 1 and Memory(tmp_path, 'run').answered == 1


def test_the_states_of_the_last_two_rounds_answered_are_kept(tmp_path):
  memory = Memory(tmp_path, 'run')
  last = NEVER
  for round in (0, 3, 4):
    memory.save(round, states(round), last)
    last = round
  again = Memory(tmp_path, 'run')
  assert same(again.load(4, LIKE), states(4)) and same(again.load(3, LIKE), states(3))
  assert again.load(0, LIKE) is None


def test_a_server_that_went_back_gets_the_states_of_its_round(tmp_path):
  memory = Memory(tmp_path, 'run')
  memory.save(0, states(0), NEVER)
  memory.save(1, states(1), 0)  # the server loses round 1, and asks for it again
  memory.save(1, states(9), 0)
  assert same(memory.load(0, LIKE), states(0)) and same(memory.load(1, LIKE), states(9))


@pytest.mark.parametrize('damage', [b'', b'PK\x03\x04 broken', None])
def test_a_damaged_file_of_states_is_none(tmp_path, damage):
  memory = Memory(tmp_path, 'run')
  memory.save(0, ROWS, NEVER)
  path = tmp_path / 'run' / '0.npz'
  path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
  assert memory.load(0, LIKE) is None


def test_states_of_other_shapes_are_none(tmp_path):
  memory = Memory(tmp_path, 'run')
  memory.save(0, {'one': np.zeros(4)}, NEVER)
  assert memory.load(0, LIKE) is None
  assert memory.load(0, tree.shapes({'one': np.zeros(5)})) is None


def test_only_the_owner_can_read_it(tmp_path):
  Memory(tmp_path / 'runs', 'run').note(0)
  assert stat.S_IMODE((tmp_path / 'runs' / 'run').stat().st_mode) == 0o700


def test_nothing_is_written_where_there_are_no_states(tmp_path):
  Memory(tmp_path, 'run').save(0, {'one': ()}, NEVER)
  assert list((tmp_path / 'run').iterdir()) == []


@pytest.mark.parametrize('run', ['', '../x', 'a/b', '.'])
def test_an_id_of_a_run_that_is_a_path_is_refused(tmp_path, run):
  with pytest.raises(ValueError, match='run must be an id'):
    Memory(tmp_path, run)
