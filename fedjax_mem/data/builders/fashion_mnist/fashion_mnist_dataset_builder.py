"""Fashion-MNIST: 60,000 + 10,000 images of 28 x 28, 10 labels, in the order of its idx files.

Reference: Xiao, Rasul, Vollgraf (2017), arXiv 1708.07747.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedjax_mem.data.builders import idx

_LABELS = (
  'T-shirt/top',
  'Trouser',
  'Pullover',
  'Dress',
  'Coat',
  'Sandal',
  'Shirt',
  'Sneaker',
  'Bag',
  'Ankle boot',
)
_FILES = {'train': 'train', 'test': 't10k'}


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Fashion-MNIST from `{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]` in `manual_dir`."""

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = idx.INSTRUCTIONS

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Fashion-MNIST, in the order of its published files.',
      features=tfds.features.FeaturesDict(
        {
          # Stored raw: PNG would cost the longer part of preparing and reading.
          'image': tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding='bytes'),
          'label': tfds.features.ClassLabel(names=_LABELS),
        }
      ),
      supervised_keys=('image', 'label'),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    folder = Path(dl_manager.manual_dir)
    return {split: self._generate_examples(folder, stem) for split, stem in _FILES.items()}

  def _generate_examples(self, folder: Path, stem: str) -> Iterator[tuple[int, dict[str, Any]]]:
    images, labels = idx.read_pair(folder, stem)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
      yield i, {'image': image[..., None], 'label': int(label)}
