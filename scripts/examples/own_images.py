"""Your own images, in folders of clients and labels, from Python and from a configuration."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import fedjax_mem as fm

CONFIG = """
version = 1
rounds = 10

[data]
name = "images"

[data.options]
path = "{folder}/signs"
layout = "client/label"     # or "label", "label/client"
channels = 1
size = [8, 8]

[model]
name = "logistic"

[client]
learning_rate = 0.2

[selection]
cohort_size = 3

[evaluation]
every = 5
"""


def draw(folder: Path) -> None:
  """Draws crosses and bars of four clients."""
  rng = np.random.default_rng(0)
  for client in range(4):
    for label in ('bar', 'cross'):
      place = folder / f'client_{client}' / label
      place.mkdir(parents=True)
      for i in range(6 + 3 * client):
        image = rng.integers(0, 80, (12, 12)).astype(np.uint8)
        image[5:7] = 255
        if label == 'cross':
          image[:, 5:7] = 255
        Image.fromarray(image).save(place / f'{i}.png')


def main(folder: Path) -> tuple[fm.Result, fm.Result]:
  """Runs the experiment by its file, and with the images read from Python."""
  draw(folder / 'signs')
  (folder / 'signs.toml').write_text(CONFIG.format(folder=folder))
  by_file = fm.run(fm.load_config(folder / 'signs.toml'), folder / 'runs', quiet=True)
  given = fm.load_config(folder / 'signs.toml', ['data.name=given', 'data.options='])
  data = fm.data.from_images(folder / 'signs', layout='client/label', channels=1, size=(8, 8))
  return by_file, fm.run(given, folder / 'runs', data=data, quiet=True)


if __name__ == '__main__':
  for result in main(Path(sys.argv[1]).absolute()):
    print(f'accuracy {result.metrics[-1]["test_accuracy"]:.3f}: {result.folder}')
