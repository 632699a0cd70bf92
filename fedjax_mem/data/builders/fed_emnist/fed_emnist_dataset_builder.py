"""FEMNIST: handwritten characters by writer, 3,400 clients (digits only: 3,383).

Pixels are as published: 1 is the background, 0 the ink. The 62 labels are digits, capital and small
letters; 671,585 training and 77,483 test examples (digits only: 10, 341,873 and 40,832).

Reference: Caldas et al. (2018), LEAF, arXiv 1812.01097.
"""

import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedjax_mem.data.builders import base, tff


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
  """The set of labels: `num_classes` is 62 or 10."""

  num_classes: int = 62


class Builder(base.TffBuilder, skip_registration=True):  # type: ignore[call-arg]
  """FEMNIST from TensorFlow Federated's HDF5 or SQLite files in `manual_dir`."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = tff.EMNIST.instructions
  BUILDER_CONFIGS = [  # noqa: RUF012 (TFDS reads a plain list)
    Config(name='all', description='Digits and letters.', num_classes=62),
    Config(name='digits', description='Digits only.', num_classes=10),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='FEMNIST by writer, as published by TensorFlow Federated.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8, encoding='bytes'),
          'label': tfds.features.ClassLabel(num_classes=self.builder_config.num_classes),
          'client_id': tfds.features.Text(),
        }
      ),
      supervised_keys=('image', 'label'),
      disable_shuffling=True,
    )

  def _files(self) -> tff.Files:
    return tff.EMNIST_DIGITS if self.builder_config.name == 'digits' else tff.EMNIST

  def _features(self, example: tff.Example) -> dict[str, Any]:
    return {'image': tff.grey(example['pixels']), 'label': tff.scalar(example['label'])}
