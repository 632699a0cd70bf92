"""Shakespeare: the lines of 715 speaking roles, 16,068 training and 2,356 test snippets.

Reference: McMahan et al. (2017), arXiv 1602.05629; Caldas et al. (2018), LEAF, arXiv 1812.01097.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from fedjax_mem.data.builders import tff


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Shakespeare from TensorFlow Federated's HDF5 or SQLite files in `manual_dir`."""

  VERSION = tfds.core.Version('1.0.0')
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

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    files = tff.SHAKESPEARE
    reader = tff.Reader(Path(dl_manager.manual_dir), files, Path(dl_manager.download_dir))
    return {split: self._generate_examples(reader, split) for split in files.splits}

  def _generate_examples(
    self, reader: tff.Reader, split: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, (client, example) in enumerate(reader.examples(split)):
      yield i, {'snippets': example['snippets'], 'client_id': client}
