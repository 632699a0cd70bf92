"""Your own builder of TensorFlow Datasets, several labels at once, without TensorFlow.

A configuration imports it by name: this folder must be on PYTHONPATH.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

import fedjax_mem as fm

CONFIG = """
version = 1
rounds = 20

[data]
name = "tfds"

[data.options]
builder = "own_tfds:Songs"
y = "moods"
client = "listener"
task = "multi_label"

[model]
name = "logistic"

[client]
learning_rate = 1.0

[selection]
cohort_size = 4

[evaluation]
every = 10
"""


class Songs(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
  """Moods of songs, as eight listeners hear them."""

  VERSION = tfds.core.Version('1.0.0')

  def _info(self) -> Any:
    features = tfds.features.FeaturesDict(
      {
        'sound': tfds.features.Tensor(shape=(5,), dtype=np.float32),
        'moods': tfds.features.Tensor(shape=(3,), dtype=np.uint8),
        'listener': tfds.features.Text(),
      }
    )
    return tfds.core.DatasetInfo(
      builder=self, features=features, supervised_keys=('sound', 'moods')
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
    return {'train': self._generate_examples(240), 'test': self._generate_examples(60)}

  def _generate_examples(self, number: int) -> Iterator[Any]:
    rng = np.random.default_rng(number)
    for i in range(number):
      sound = rng.normal(size=5).astype(np.float32)
      moods = (sound[:3] + rng.normal(0, 0.3, 3) > 0).astype(np.uint8)
      yield i, {'sound': sound, 'moods': moods, 'listener': f'listener {rng.integers(8)}'}


def main(folder: Path) -> tuple[fm.Result, fm.Result]:
  """Runs the experiment by its file, and with the examples read from Python."""
  (folder / 'songs.toml').write_text(CONFIG)
  where = str(folder / 'data')
  by_file = fm.run(
    fm.load_config(folder / 'songs.toml'), folder / 'runs', data_dir=where, quiet=True
  )
  given = fm.load_config(folder / 'songs.toml', ['data.name=given', 'data.options='])
  data = fm.data.from_tfds(Songs, y='moods', client='listener', task='multi_label', data_dir=where)
  return by_file, fm.run(given, folder / 'runs', data=data, quiet=True)


if __name__ == '__main__':
  for result in main(Path(sys.argv[1]).absolute()):
    last = result.metrics[-1]
    print(f'mean average precision {last["test_mean_average_precision"]:.3f}: {result.folder}')
