"""idx files: plain and gzipped, and each way of being damaged."""

import gzip

import numpy as np
import pytest

from fedjax_mem.data.builders import idx


def encode(array):
  head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes()
  return head + array.tobytes()


def write(folder, packed=False, images=None, labels=None):
  if images is None:
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28)).astype(np.uint8)
  labels = np.array([1, 0, 2], np.uint8) if labels is None else labels
  for stem in ('train', 't10k'):
    for name, array in zip(idx.names(stem), (images, labels), strict=True):
      raw = encode(array)
      path = folder / (name + '.gz' if packed else name)
      path.write_bytes(gzip.compress(raw) if packed else raw)
  return images, labels


@pytest.mark.parametrize('packed', [False, True])
def test_pairs_are_read(tmp_path, packed):
  images, labels = write(tmp_path, packed)
  got = idx.read_pair(tmp_path, 'train')
  assert np.array_equal(got[0], images) and np.array_equal(got[1], labels)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('keep', [0, 3, 10, 500, -1])
def test_a_truncated_file_is_named(tmp_path, packed, keep):
  write(tmp_path, packed)
  path = idx.find(tmp_path, 'train-images-idx3-ubyte')
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=f'{path.name} must'):
    idx.read_pair(tmp_path, 'train')


def test_other_damage_is_named(tmp_path):
  write(tmp_path, labels=np.array([1, 0], np.uint8))
  with pytest.raises(ValueError, match='must be as many, got 3 and 2'):
    idx.read_pair(tmp_path, 'train')
  write(tmp_path, labels=np.zeros((3, 1), np.uint8))
  with pytest.raises(ValueError, match='must have 1 dimensions, got 2'):
    idx.read_pair(tmp_path, 'train')
  (tmp_path / 'train-labels-idx1-ubyte').write_bytes(b'\x89PNG....')
  with pytest.raises(ValueError, match='must be an idx file of uint8'):
    idx.read_pair(tmp_path, 'train')
  (tmp_path / 'train-labels-idx1-ubyte').unlink()
  with pytest.raises(ValueError, match=r'must hold train-labels-idx1-ubyte or .*\.gz, got neither'):
    idx.read_pair(tmp_path, 'train')
