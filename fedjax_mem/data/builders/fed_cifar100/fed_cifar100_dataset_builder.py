"""CIFAR-100 on 500 training and 100 test clients of 100 images each, by Pachinko allocation.

Test clients are different from training clients, even if they have the same names.

Reference: Krizhevsky (2009); Reddi et al. (2021), arXiv 2003.00295, appendix F.
"""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedjax_mem.data.builders import base, tff

_SHAPE = (32, 32, 3)


class Builder(base.TffBuilder, skip_registration=True):  # type: ignore[call-arg]
  """CIFAR-100 from TensorFlow Federated's HDF5 or SQLite files in `manual_dir`."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = tff.CIFAR100.instructions

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='CIFAR-100 by client, as published by TensorFlow Federated.',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Tensor(shape=_SHAPE, dtype=np.uint8, encoding='bytes'),
          'label': tfds.features.ClassLabel(num_classes=100),
          'coarse_label': tfds.features.ClassLabel(num_classes=20),
          'client_id': tfds.features.Text(),
        }
      ),
      supervised_keys=('image', 'label'),
      disable_shuffling=True,
    )

  def _files(self) -> tff.Files:
    return tff.CIFAR100

  def _features(self, example: tff.Example) -> dict[str, Any]:
    return {
      'image': np.asarray(example['image']).reshape(_SHAPE).astype(np.uint8),
      'label': tff.scalar(example['label']),
      'coarse_label': tff.scalar(example['coarse_label']),
    }
