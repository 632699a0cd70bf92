"""Flat arrays: whole or refused, and never half there."""

import json

import numpy as np
import pytest

from fedjax_mem.data import flat
from fedjax_mem.data.preprocess import Inputs, Tokens

FACTS = flat.Facts('toy', 5, (4, 4, 1), divisor=255.0)
REMEDY = 'fedjax-mem data prepare toy'


def blocks(seed, sizes=(7, 0, 3), clients=None):
  rng = np.random.default_rng(seed)
  for size in sizes:
    x = rng.integers(0, 256, (size, 4, 4)).astype(np.uint8)
    y = rng.integers(0, 5, size).astype(np.int32)
    yield flat.Block(x, y, clients and [clients[i % len(clients)] for i in range(size)])


def write(home, **options):
  return flat.write(home, FACTS, {'train': blocks(0, **options), 'test': blocks(1, **options)})


def test_round_trip(tmp_path):
  write(tmp_path)
  table = flat.read(tmp_path, REMEDY)
  for part, seed in ((table.arrays, 0), (table.test, 1)):
    expected = list(blocks(seed))
    assert np.array_equal(part['x'], np.concatenate([b.x for b in expected]))
    assert np.array_equal(part['y'], np.concatenate([b.y for b in expected]))
    assert isinstance(part['x'], np.memmap) and part['x'].dtype == np.uint8
  assert table.preprocess == Inputs((4, 4, 1), 255.0) and table.num_classes == 5
  assert table.client_ids is None and table.clients is None


def test_clients_keep_their_names_across_splits(tmp_path):
  splits = {'train': blocks(0, (4,), ['b', 'a']), 'test': blocks(1, (4,), ['c', 'a'])}
  flat.write(tmp_path, FACTS, splits)
  table = flat.read(tmp_path, REMEDY)
  assert table.clients == ('b', 'a')
  assert table.client_ids.tolist() == [0, 1, 0, 1]
  assert table.test_client_ids.tolist() == [-1, 1, -1, 1]


def test_names_that_mean_others_in_the_test_split_are_not_matched(tmp_path):
  facts = FACTS._replace(shared_clients=False)
  flat.write(tmp_path, facts, {'train': blocks(0, (4,), ['a']), 'test': blocks(1, (4,), ['a'])})
  assert flat.read(tmp_path, REMEDY).test_client_ids.tolist() == [-1] * 4


def test_tokens_are_known_as_such(tmp_path):
  x = np.ones((3, 6), np.uint8)
  block = flat.Block(x, x)
  facts = flat.Facts('text', 5, (6,), 'tokens')
  flat.write(tmp_path, facts, {'train': [block], 'test': [block]})
  table = flat.read(tmp_path, REMEDY)
  assert table.preprocess == Tokens()
  assert table.arrays['x'].dtype == np.uint8 and table.arrays['y'].dtype == np.int32
  manifest = tmp_path / 'flat' / 'flat.json'
  manifest.write_text(json.dumps({**json.loads(manifest.read_text()), 'format': 1}))
  with pytest.raises(ValueError, match=f'format 1 is not 2.*{REMEDY}'):  # no `oov` for empty words
    flat.read(tmp_path, REMEDY)


def test_writing_again_replaces_and_leaves_nothing_behind(tmp_path):
  write(tmp_path)
  write(tmp_path, sizes=(2,))
  assert len(flat.read(tmp_path, REMEDY).arrays['y']) == 2
  assert [p.name for p in tmp_path.iterdir()] == ['flat']


def test_a_writer_that_dies_leaves_the_old_arrays(tmp_path):
  write(tmp_path)

  def dying():
    yield from blocks(0)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    flat.write(tmp_path, FACTS, {'train': dying(), 'test': blocks(1)})
  assert len(flat.read(tmp_path, REMEDY).arrays['y']) == 10
  assert [p.name for p in tmp_path.iterdir()] == ['flat']


def damage_cut(folder):
  path = folder / 'train_x.npy'
  path.write_bytes(path.read_bytes()[:-1])


def damage_flip(folder):
  path = folder / 'test_x.npy'
  raw = bytearray(path.read_bytes())
  raw[-5] ^= 1
  path.write_bytes(raw)


def damage_header(folder):
  path = folder / 'train_x.npy'
  path.write_bytes(path.read_bytes().replace(b'(10, 4, 4)', b'(20, 4, 2)'))


def damage_format(folder):
  path = folder / 'flat.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'format': 99}))


def damage_json(folder):
  path = folder / 'flat.json'
  path.write_text(path.read_text()[:-20])


def damage_keys(folder):
  (folder / 'flat.json').write_text('{}')


def damage_gone(folder):
  (folder / 'test_y.npy').unlink()


@pytest.mark.parametrize(
  'damage',
  [damage_cut, damage_flip, damage_header, damage_format, damage_json, damage_keys, damage_gone],
)
def test_damage_is_refused_with_the_command_that_mends_it(tmp_path, damage):
  folder = write(tmp_path)
  damage(folder)
  with pytest.raises(ValueError, match=f'flat must be whole.*{REMEDY}'):
    flat.read(tmp_path, REMEDY)


def test_bad_examples_are_refused(tmp_path):
  x, y = np.zeros((2, 4), np.uint8), np.zeros(2, np.int32)
  good = flat.Block(x, y)
  for bad, message in (
    (flat.Block(x, y + 5), r'labels of .toy. must be in \[0, 5\), got 5 to 5'),
    (flat.Block(x[:, :3], y), 'examples for train_x.npy must be uint8'),
    (flat.Block(x.astype(np.float32), y), 'got float32'),
  ):
    with pytest.raises(ValueError, match=message):
      flat.write(tmp_path, FACTS, {'train': [good, bad], 'test': [good]})
  with pytest.raises(ValueError, match='a split must hold at least one example'):
    flat.write(tmp_path, FACTS, {'train': [good], 'test': []})
  assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='file must be a writable folder'):
    write(tmp_path / 'file')


def test_the_highest_version_is_found(tmp_path):
  for version in ('1.0.0', '1.10.0', '1.9.0'):
    write(tmp_path / 'toy' / version)
  assert flat.find(tmp_path, 'toy').name == '1.10.0'
  assert flat.find(tmp_path, 'other') is None
