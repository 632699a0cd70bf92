"""A builder of TFDS of one's own, in a package folder, prepared without TensorFlow."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fedjax_mem as fm
from fedjax_mem.data import from_tfds

BUILDER = """
import numpy as np
import tensorflow_datasets as tfds


class Builder(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = tfds.features.FeaturesDict({
      'weather': tfds.features.Tensor(shape=(3,), dtype=np.float32),
      'good': tfds.features.ClassLabel(names=['no', 'yes']),
      'degrees': np.float32,
      'station': tfds.features.Text(),
    })
    return self.dataset_info_from_configs(features=features, supervised_keys=('weather', 'good'))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(12), 'rest': self._generate_examples(4)}

  def _generate_examples(self, n):
    for i in range(n):
      x = np.full(3, i, np.float32)
      yield i, {'weather': x, 'good': i % 2, 'degrees': i / 2, 'station': 'ab'[i % 3 == 0]}
"""


@pytest.fixture(scope='module')
def package(tmp_path_factory):
  folder = tmp_path_factory.mktemp('packages')
  (folder / 'own_weather').mkdir()
  (folder / 'own_weather' / '__init__.py').write_text('')
  (folder / 'own_weather' / 'own_weather_dataset_builder.py').write_text(BUILDER)
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(folder))
    yield 'own_weather.own_weather_dataset_builder:Builder'


@pytest.mark.slow
def test_a_builder_of_ones_own_is_prepared_and_read(package, tmp_path):
  options = {'client': 'station', 'test_share': 0, 'data_dir': str(tmp_path)}
  data = fm.data.load('tfds', builder=package, **options)
  assert list(tmp_path.rglob('*train.array_record*'))
  assert data.clients == ('a', 'b') and data.counts.tolist() == [8, 4]
  assert data.labels == ('no', 'yes') and data.input_shape == (3,)
  assert data.arrays['y'].tolist() == [int(x) % 2 for x in data.arrays['x'][:, 0]]
  degrees = from_tfds(package, y='degrees', task='regression', test='rest', data_dir=tmp_path)
  assert np.array_equal(degrees.arrays['y'], degrees.arrays['x'][:, 0] / 2)
  assert len(degrees.test['y']) == 4 and degrees.client_ids is None
  for given, message in (
    ({'y': 'degree'}, "Did you mean 'degrees'"),
    ({'client': 'town'}, "client must be one of .* got 'town'"),
    ({'test': 'test'}, "test must be one of 'rest', 'train', got 'test'|test must be one of"),
    ({'x': 'station'}, "feature 'station' must be numbers, got '.' in row 0"),
  ):
    with pytest.raises(ValueError, match=message):
      from_tfds(package, **given, data_dir=tmp_path)


@pytest.mark.slow
def test_what_is_no_builder_is_refused():
  with pytest.raises(ValueError, match='builder must be a TFDS builder, got 3'):
    from_tfds(3)
  with pytest.raises(ValueError, match='builder must name a module that can be imported'):
    from_tfds('no_such_package:Builder')


@pytest.mark.slow
def test_readers_import_what_they_need_when_they_need_it():
  code = (
    'import sys; from fedjax_mem import data; '
    'data.from_table({"a": [1.0, 2.0], "y": [0, 1]}, "y"); '
    'print([m for m in ("pandas", "pyarrow", "PIL", "tensorflow_datasets") if m in sys.modules])'
  )
  root = str(Path(__file__).parents[4])
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=root
  )
  assert done.stdout == '[]\n'
