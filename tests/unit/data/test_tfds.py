"""Preparing through TFDS without TensorFlow, and loading without TFDS."""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedjax_mem.data import tfds as prepared
from fedjax_mem.data.builders import idx

SIZES = {'train': 2500, 't10k': 40}


@pytest.fixture
def source(tmp_path):
  """A folder with small files in the format of Fashion-MNIST; more than one batch of them."""
  folder = tmp_path / 'source'
  folder.mkdir()
  rng = np.random.default_rng(0)
  for stem, size in SIZES.items():
    arrays = rng.integers(0, 256, (size, 28, 28)), rng.integers(0, 10, size)
    for name, array in zip(idx.names(stem), arrays, strict=True):
      head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes()
      (folder / f'{name}.gz').write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))
  return folder


def test_fashion_mnist_keeps_the_order_of_its_files(source, tmp_path):
  folder = prepared.prepare('fashion_mnist', tmp_path, source)
  assert list(folder.parent.glob('*train.array_record*'))
  table = prepared.load('fashion_mnist', tmp_path)
  for part, stem in ((table.arrays, 'train'), (table.test, 't10k')):
    images, labels = idx.read_pair(source, stem)
    assert np.array_equal(part['x'][..., 0], images)
    assert np.array_equal(part['y'], labels)
  assert table.input_shape == (28, 28, 1) and table.num_classes == 10
  assert table.preprocess(table.test)['x'].max() <= 1


def test_preparing_again_keeps_what_is_whole_and_mends_what_is_not(source, tmp_path):
  folder = prepared.prepare('fashion_mnist', tmp_path, source)
  before = (folder / 'flat.json').stat().st_mtime_ns
  assert prepared.prepare('fashion_mnist', tmp_path) == folder
  assert (folder / 'flat.json').stat().st_mtime_ns == before
  shutil.rmtree(source)
  os.truncate(folder / 'train_x.npy', 1000)
  with pytest.raises(ValueError, match='data prepare fashion_mnist --data-dir'):
    prepared.load('fashion_mnist', tmp_path)
  prepared.prepare('fashion_mnist', tmp_path)
  assert len(prepared.load('fashion_mnist', tmp_path).arrays['y']) == SIZES['train']


def test_damaged_array_record_files_are_named(source, tmp_path):
  folder = prepared.prepare('fashion_mnist', tmp_path, source)
  shutil.rmtree(folder)
  record = next(folder.parent.glob('*train.array_record*'))
  os.truncate(record, record.stat().st_size // 2)
  with pytest.raises(ValueError, match=r'must hold whole array_record files.*delete it, then'):
    prepared.prepare('fashion_mnist', tmp_path)


@pytest.mark.slow
def test_flat_arrays_that_lost_their_source_files_can_be_made_anew(source, tmp_path):
  folder = prepared.prepare('fashion_mnist', tmp_path, source)
  for path in folder.parent.iterdir():
    if path.is_file():
      path.unlink()
  assert len(prepared.load('fashion_mnist', tmp_path).arrays['y']) == SIZES['train']
  (folder / 'train_x.npy').unlink()
  with pytest.raises(ValueError, match='must hold array_record files, got none; delete it'):
    prepared.prepare('fashion_mnist', tmp_path, source)
  shutil.rmtree(folder.parent)
  assert prepared.prepare('fashion_mnist', tmp_path, source) == folder


def test_a_half_written_source_is_named_and_nothing_is_prepared(source, tmp_path):
  path = source / 'train-images-idx3-ubyte.gz'
  path.write_bytes(path.read_bytes()[:1000])
  with pytest.raises(ValueError, match=f'{path.name} must be a whole gzip file'):
    prepared.prepare('fashion_mnist', tmp_path, source)
  with pytest.raises(ValueError, match="data 'fashion_mnist' must be prepared"):
    prepared.load('fashion_mnist', tmp_path)


def test_missing_sources_name_the_places_and_the_package(tmp_path):
  with pytest.raises(ValueError, match='apt install dataset-fashion-mnist') as caught:
    prepared.prepare('fashion_mnist', tmp_path, tmp_path / 'nowhere')
  assert str(tmp_path / 'nowhere') in str(caught.value)


def test_sources_are_found_in_the_data_folder_of_the_environment(source, tmp_path, monkeypatch):
  monkeypatch.setenv('FEDJAX_MEM_DATA', str(tmp_path))
  shutil.move(source, tmp_path / 'manual' / 'fashion_mnist')
  prepared.prepare('fashion_mnist')
  assert len(prepared.load('fashion_mnist').arrays['y']) == SIZES['train']


def test_an_unwritable_data_folder_is_one_error(source, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='must be a writable folder'):
    prepared.prepare('fashion_mnist', tmp_path / 'file', source)


@pytest.mark.slow
def test_loading_imports_neither_tfds_nor_tensorflow(source, tmp_path):
  prepared.prepare('fashion_mnist', tmp_path, source)
  code = (
    'import sys; from fedjax_mem import data; '
    f'd = data.load("fashion_mnist", data_dir={str(tmp_path)!r}, num_clients=5); '
    'assert d.num_clients == 5; '
    'print([m for m in ("tensorflow", "tensorflow_datasets") if m in sys.modules])'
  )
  root = Path(__file__).parents[3]
  environment = {**os.environ, 'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'}
  result = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True, env=environment
  )
  assert result.stdout == '[]\n'


def make_foreign(root, features, examples):
  """Prepares a data set of another's making, as TFDS leaves it on the disk."""
  import tensorflow_datasets as tfds
  from etils import epath

  class ToySet(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('2.1.0')
    name = 'toy_set'
    pkg_dir_path = epath.Path(root)

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples() for split in ('train', 'test')}

    def _generate_examples(self):
      yield from enumerate(examples)

  ToySet(data_dir=str(root), file_format='array_record').download_and_prepare()


def test_a_set_that_tfds_prepared_is_loaded_by_name(tmp_path):
  import tensorflow_datasets as tfds

  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (20, 6, 6, 3)).astype(np.uint8)
  # TFDS encodes arrays with TensorFlow, but pictures of PIL without.
  examples = [{'image': Image.fromarray(x), 'label': i % 4} for i, x in enumerate(images)]
  features = {
    'image': tfds.features.Image(shape=(6, 6, 3)),
    'label': tfds.features.ClassLabel(num_classes=4),
  }
  make_foreign(tmp_path, features, examples)
  prepared.prepare('toy_set', tmp_path)
  table = prepared.load('toy_set', tmp_path)
  # TFDS shuffles; each image must be there once, with its label.
  label_of = {image.tobytes(): i % 4 for i, image in enumerate(images)}
  got = {x.tobytes(): int(y) for x, y in zip(table.arrays['x'], table.arrays['y'], strict=True)}
  assert got == label_of and table.input_shape == (6, 6, 3) and table.num_classes == 4


def test_inputs_of_many_sizes_are_refused(tmp_path):
  import tensorflow_datasets as tfds

  features = {
    'image': tfds.features.Image(shape=(None, None, 3)),
    'label': tfds.features.ClassLabel(num_classes=4),
  }
  make_foreign(tmp_path, features, [{'image': Image.new('RGB', (4, 5)), 'label': 1}])
  with pytest.raises(ValueError, match="'toy_set' must have inputs of one size"):
    prepared.prepare('toy_set', tmp_path)


def test_a_set_in_tfds_s_own_folder_is_found(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  features = {
    'image': tfds.features.Tensor(shape=(3,), dtype=np.float32),
    'label': tfds.features.ClassLabel(num_classes=4),
  }
  examples = [{'image': np.full(3, 0.5, np.float32), 'label': 1}]
  make_foreign(tmp_path / 'theirs', features, examples)

  def folders(given_data_dir=None, **unused):
    return [given_data_dir or tmp_path / 'theirs']

  monkeypatch.setattr(tfds.core.utils.file_utils, 'list_data_dirs', folders)
  folder = prepared.prepare('toy_set', tmp_path / 'ours')
  assert folder == tmp_path / 'ours' / 'toy_set' / '2.1.0' / 'flat'
  table = prepared.load('toy_set', tmp_path / 'ours')
  assert table.preprocess(table.arrays)['x'].tolist() == [[0.5] * 3]


def test_a_builder_that_needs_tensorflow_says_so(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  def builder(*unused, **options):
    raise ImportError("Failed to encode\nNo module named 'tensorflow'")

  monkeypatch.setattr(tfds, 'builder', builder)
  with pytest.raises(ValueError, match=r"must be prepared with TensorFlow.*named 'tensorflow'"):
    prepared.prepare('cifar10', tmp_path)


def test_an_unknown_name_is_one_error(tmp_path):
  with pytest.raises(ValueError, match="data 'no_such_set' must be known to TFDS") as caught:
    prepared.prepare('no_such_set', tmp_path)
  assert '\n' not in str(caught.value)
