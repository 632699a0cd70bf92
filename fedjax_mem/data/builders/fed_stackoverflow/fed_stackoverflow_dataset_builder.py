"""Stack Overflow: sentences of questions and answers by 342,477 users, 135,818,730 for training.

Reference: The TensorFlow Federated Authors (2019); Reddi et al. (2021), arXiv 2003.00295, appendix
C.4.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fedjax_mem.data.builders import tff

_TEXTS = ('tokens', 'title', 'tags', 'creation_date', 'type')


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """Stack Overflow from TensorFlow Federated's HDF5 or SQLite files in `manual_dir`."""

  VERSION = tfds.core.Version('1.0.0')
  MANUAL_DOWNLOAD_INSTRUCTIONS = tff.STACKOVERFLOW.instructions

  def _info(self) -> tfds.core.DatasetInfo:
    texts = {name: tfds.features.Text() for name in (*_TEXTS, 'client_id')}
    return tfds.core.DatasetInfo(
      builder=self,
      description='Stack Overflow by user, as published by TensorFlow Federated.',
      features=tfds.features.FeaturesDict({**texts, 'score': tfds.features.Scalar(np.int64)}),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    files = tff.STACKOVERFLOW
    reader = tff.Reader(Path(dl_manager.manual_dir), files, Path(dl_manager.download_dir))
    return {split: self._generate_examples(reader, split) for split in files.splits}

  def _generate_examples(
    self, reader: tff.Reader, split: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, (client, example) in enumerate(reader.examples(split)):
      texts = {name: example[name] for name in _TEXTS}
      yield i, {**texts, 'score': tff.scalar(example['score']), 'client_id': client}
