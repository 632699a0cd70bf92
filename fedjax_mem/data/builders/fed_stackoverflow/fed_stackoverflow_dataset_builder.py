"""Stack Overflow: sentences of questions and answers by 342,477 users, 135,818,730 for training.

Reference: The TensorFlow Federated Authors (2019); Reddi et al. (2021), arXiv 2003.00295, appendix
C.4.
"""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedjax_mem.data.builders import base, tff

_TEXTS = ('tokens', 'title', 'tags', 'creation_date', 'type')


class Builder(base.TffBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Stack Overflow from TensorFlow Federated's HDF5 or SQLite files in `manual_dir`."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = tff.STACKOVERFLOW.instructions

  def _info(self) -> tfds.core.DatasetInfo:
    texts = {name: tfds.features.Text() for name in (*_TEXTS, 'client_id')}
    return tfds.core.DatasetInfo(
      builder=self,
      description='Stack Overflow by user, as published by TensorFlow Federated.',
      features=tfds.features.FeaturesDict({**texts, 'score': tfds.features.Scalar(np.int64)}),
      disable_shuffling=True,
    )

  def _files(self) -> tff.Files:
    return tff.STACKOVERFLOW

  def _features(self, example: tff.Example) -> dict[str, Any]:
    texts = {name: example[name] for name in _TEXTS}
    return {**texts, 'score': tff.scalar(example['score'])}
