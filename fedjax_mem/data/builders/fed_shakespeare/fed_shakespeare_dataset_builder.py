"""Shakespeare: the lines of 715 speaking roles, 16,068 training and 2,356 test snippets.

Reference: McMahan et al. (2017), arXiv 1602.05629; Caldas et al. (2018), LEAF, arXiv 1812.01097.
"""

from typing import Any

import tensorflow_datasets as tfds

from fedjax_mem.data.builders import base, tff


class Builder(base.TffBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Shakespeare from TensorFlow Federated's HDF5 or SQLite files in `manual_dir`."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = tff.SHAKESPEARE.instructions

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='Shakespeare by speaker, as published by TensorFlow Federated.',
      features=tfds.features.FeaturesDict(
        {'snippets': tfds.features.Text(), 'client_id': tfds.features.Text()}
      ),
      disable_shuffling=True,
    )

  def _files(self) -> tff.Files:
    return tff.SHAKESPEARE

  def _features(self, example: tff.Example) -> dict[str, Any]:
    return {'snippets': example['snippets']}
