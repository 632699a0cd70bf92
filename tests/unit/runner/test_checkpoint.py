"""Checkpoints: bit for bit, refused when damaged or foreign, the one before it used."""

import resource
import shutil
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.core import State, compose, stack_clients, tree
from fedjax_mem.engine import Execution, simulate
from fedjax_mem.runner import checkpoint
from fedjax_mem.runner.checkpoint import CheckpointError, Checkpoints
from fedjax_mem.stages.algorithm import fedavg
from fedjax_mem.stages.compress import error_feedback, top_k
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import equal


def test_what_its_threads_say_of_a_damaged_file_is_not_shown(monkeypatch):
  shown = []
  monkeypatch.setattr(sys, 'excepthook', lambda kind, error, trace: shown.append(str(error)))
  checkpoint._silence.__wrapped__()

  def fail():
    for error in (RuntimeError('Event loop is closed'), RuntimeError('other'), ValueError('x')):
      sys.excepthook(type(error), error, None)

  other = threading.Thread(target=fail)
  other.start()
  other.join()
  assert shown == ['other', 'x']
  fail()
  assert shown[2:] == ['Event loop is closed', 'other', 'x']


def state(number: int, width: int = 5, extra: bool = False) -> State:
  rng = np.random.default_rng(number)
  params = {'w': rng.normal(size=(width, 3)).astype(np.float32), 'b': np.zeros(3, np.float32)}
  params['b'][:] = [np.nan, -0.0, 1e-45]  # bits, not values, have to come back
  if extra:
    params['c'] = np.ones(2, np.float32)
  clients = {
    'algorithm': (),
    'codec': {'memory': rng.normal(size=(4, 0)), 'count': np.arange(4, dtype=np.int8)},
  }
  servers = {
    'select': np.int32(number),
    'flag': np.array(True),
    'half': jnp.bfloat16(0.1),
    'bits': np.uint32(2**32 - 1),
  }
  return jax.tree.map(jnp.asarray, State(np.int32(number), params, clients, servers))


def same_bits(a, b) -> None:
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x), np.asarray(y)
    assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


LIKE = tree.shapes(state(0))


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
  """A folder with the checkpoints 10 and 20."""
  folder = tmp_path_factory.mktemp('sound') / 'checkpoints'
  checkpoints = Checkpoints(folder)
  for number in (10, 20):
    assert checkpoints.save(state(number)) == number
  checkpoints.close()
  return folder


@pytest.fixture
def folder(sound, tmp_path):
  return shutil.copytree(sound, tmp_path / 'checkpoints')


def files(folder, number):
  return sorted(
    x for x in (folder / str(number)).rglob('*') if x.is_file() and x.stat().st_size > 0
  )


def test_a_state_comes_back_bit_for_bit(folder):
  checkpoints = Checkpoints(folder)
  assert checkpoints.numbers() == [20, 10]
  read, refused = checkpoints.restore(LIKE)
  same_bits(read, state(20))
  assert refused == []


def test_a_checkpoint_is_read_where_the_devices_that_wrote_it_are_not(folder):
  sharding = folder / '20' / 'state' / '_sharding'
  text = sharding.read_text()
  assert text.count('cpu:0') == 8
  sharding.write_text(text.replace('cpu:0', 'cuda:0'))
  read, refused = Checkpoints(folder).restore(LIKE)
  same_bits(read, state(20))
  number, params = Checkpoints(folder).parameters()
  assert refused == [] and number == 20
  assert params['w'].tobytes() == np.asarray(state(20).params['w']).tobytes()


def test_the_newest_are_kept_and_one_that_is_there_is_left_alone(tmp_path):
  checkpoints = Checkpoints(tmp_path / 'new' / 'checkpoints', keep=2)
  for number in (1, 2, 3):
    checkpoints.save(state(number))
  assert checkpoints.numbers() == [3, 2]
  before = (tmp_path / 'new/checkpoints/3').stat().st_mtime_ns
  assert checkpoints.save(state(3)) == 3
  assert (tmp_path / 'new/checkpoints/3').stat().st_mtime_ns == before


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path, folder):
  checkpoints = Checkpoints(folder)
  half = folder / '25.orbax-checkpoint-tmp'
  shutil.copytree(folder / '20', half)
  checkpoints.close()
  checkpoints = Checkpoints(folder)
  assert checkpoints.restore(LIKE)[0].round == 20
  checkpoints.save(state(30))
  assert not half.exists()
  assert checkpoints.numbers() == [30, 20, 10]


def damage(path, how: str) -> None:
  data = path.read_bytes()
  if how == 'deleted':
    path.unlink()
  elif how == 'cut':
    path.write_bytes(data[: len(data) // 2])
  elif how == 'emptied':
    path.write_bytes(b'')
  else:
    place = len(data) // 2
    path.write_bytes(data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :])


# Orbax leaves coroutines behind when it fails to read.
@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('how', ['cut', 'emptied', 'flipped', 'deleted'])
def test_every_damaged_file_is_noticed_or_does_not_matter(sound, tmp_path, how):
  refusals = 0
  for i, original in enumerate(files(sound, 20)):
    copy = shutil.copytree(sound, tmp_path / str(i))
    damage(copy / original.relative_to(sound), how)
    checkpoints = Checkpoints(copy)
    read, refused = checkpoints.restore(LIKE)
    checkpoints.close()
    # Never a third: either the newest, whole, or the one before it, saying so.
    same_bits(read, state(10 if refused else 20))
    refusals += bool(refused)
    if refused:
      (line,) = refused
      assert '20' in line and 'refused' in line and '\n' not in line
  assert refusals >= 3  # the values, their index, the checksum


def test_sound_files_that_are_not_those_written_are_noticed(folder):
  shutil.rmtree(folder / '20' / 'state')
  shutil.copytree(folder / '10' / 'state', folder / '20' / 'state')
  read, refused = Checkpoints(folder).restore(LIKE)
  same_bits(read, state(10))
  said = "checkpoint 20 is refused: the checksum of 'params/w' does not match its contents"
  assert refused == [said]


@pytest.mark.parametrize(
  ('mine', 'theirs'), [('a', 'b'), ('a', None), (None, 'b')], ids=['another', 'none', 'new in old']
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, mine, theirs):
  folders = [tmp_path / 'mine', tmp_path / 'theirs']
  for folder, run_id, number in zip(folders, (mine, theirs), (10, 20), strict=True):
    checkpoints = Checkpoints(folder, run_id=run_id)
    checkpoints.save(state(number))
    checkpoints.close()
  shutil.copytree(folders[1] / '20', folders[0] / '20')
  read, refused = Checkpoints(folders[0], run_id=mine).restore(LIKE)
  same_bits(read, state(10))
  assert refused == ['checkpoint 20 is refused: it is of another run']


def spoil(folder, number) -> None:
  for path in files(folder, number):
    damage(path, 'cut')


def test_the_rounds_after_a_refused_checkpoint_are_saved_anew(folder):
  spoil(folder, 20)
  checkpoints = Checkpoints(folder)
  assert checkpoints.restore(LIKE)[0].round == 10
  for number in (15, 20):  # the old 20 must neither stand in the way nor be taken for the new one
    checkpoints.save(state(number))
  checkpoints.close()
  read, refused = Checkpoints(folder).restore(LIKE)
  same_bits(read, state(20))
  assert refused == []


def test_all_damaged_is_one_clear_error_and_nothing_is_removed(folder):
  spoil(folder, 20)
  spoil(folder, 10)
  checkpoints = Checkpoints(folder)
  with pytest.raises(CheckpointError, match=r'no sound checkpoint in .*20.*10') as error:
    checkpoints.restore(LIKE)
  assert '\n' not in str(error.value)
  assert (folder / '20').exists() and (folder / '10').exists()


def test_none_at_all_is_an_error(tmp_path):
  with pytest.raises(CheckpointError, match='there is none'):
    Checkpoints(tmp_path).restore(LIKE)


def other_name():
  like = LIKE.params
  return LIKE._replace(params={'w': like['w'], 'bias': like['b']})


def other_dtype():
  return LIKE._replace(params=jax.tree.map(lambda x: x.update(dtype=jnp.bfloat16), LIKE.params))


@pytest.mark.parametrize(
  ('like', 'words'),
  [
    (tree.shapes(state(0, width=6)), "its 'params/w' is float32(5, 3), the run has float32(6, 3)"),
    (tree.shapes(state(0, extra=True)), "the run has 'params/c', it has not"),
    (other_name(), "it has 'params/b', the run has not"),
    (other_dtype(), "its 'params/b' is float32(3,), the run has bfloat16(3,)"),
    (LIKE._replace(params={'w': LIKE.params['w']}), "it has 'params/b', the run has not"),
    (LIKE._replace(clients={'algorithm': ()}), "it has 'clients/codec/count', the run has not"),
  ],
  ids=['shape', 'more', 'name', 'dtype', 'fewer', 'no table'],
)
def test_a_checkpoint_of_another_model_is_refused(folder, like, words):
  checkpoints = Checkpoints(folder)
  with pytest.raises(CheckpointError) as error:
    checkpoints.restore(like)
  assert f'checkpoint 20 is refused: {words}: it is of another experiment' in str(error.value)
  assert checkpoints.numbers() == [20, 10]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(CheckpointError, match='cannot be kept in'):
    Checkpoints(tmp_path / 'file' / 'checkpoints')


def test_a_full_disk_is_one_clear_error_and_leaves_the_one_before(folder):
  checkpoints = Checkpoints(folder)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
  try:
    with pytest.raises(CheckpointError, match='checkpoint of round 30 cannot be written'):
      checkpoints.save(state(30, width=5000))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  checkpoints.close()
  assert Checkpoints(folder).restore(LIKE)[0].round == 20


MESHES = ((4, 2), (4, 4), (4, 1), (1, 1))  # (devices, devices of a model)


@pytest.mark.slow
@pytest.mark.devices(4)
@pytest.mark.standard_promotion
def test_divided_parameters_go_to_any_other_devices_bit_for_bit(tmp_path):
  """Saved on 2 x 2 devices (clients x model); restored on 1 x 4, 4 x 1 and one."""
  rng = np.random.default_rng(0)
  params = {'w': rng.normal(size=(6, 8)).astype('f4'), 'b': np.zeros(5, np.float32)}
  params['b'][:] = [np.nan, -0.0, 1e-45, 1, 2]
  layers = compose(
    fedavg(lambda p, batch, key: p['w'].sum() * batch['x'], learning_rate=0.1, batch_size=1),
    round_robin(4, 4),
    equal(),
    error_feedback(top_k(k=3)),
  )
  data = stack_clients([{'x': np.ones(1, np.float32)}] * 4)
  folder = tmp_path / 'checkpoints'
  for number, (devices, shared) in enumerate(MESHES):
    rules = [('w', -1)] * (shared > 1)
    how = Execution(devices=devices, model_devices=shared, rules=rules)
    sim = simulate(layers, params, data, execution=how)
    init = sim.init(params)
    checkpoints = Checkpoints(folder)
    if not number:
      residual = rng.normal(size=(4, 6, 8)).astype('f4')
      table = init.clients[layers[3].name]
      table = ({**table[0], 'w': jax.device_put(residual, table[0]['w'].sharding)}, *table[1:])
      saved = init._replace(clients={**init.clients, layers[3].name: table})
      checkpoints.save(saved)
    restored, refused = checkpoints.restore(tree.shapes(init), shardings=sim.shardings)
    checkpoints.close()
    assert not refused
    same_bits(jax.device_get(restored), jax.device_get(saved))
    for x, like in zip(jax.tree.leaves(restored), jax.tree.leaves(init), strict=True):
      assert x.sharding.is_equivalent_to(like.sharding, x.ndim)
    if shared > 1:
      assert restored.params['w'].addressable_shards[0].data.shape == (6, 8 // shared)
