"""What the builders of the data sets that TensorFlow Federated publishes share.

tensorflow-datasets is imported with this module: import it only where data are prepared.
"""

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from fedjax_mem.data.builders import tff


class TffBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
  """A builder that reads published HDF5 or SQLite files in `manual_dir`, client after client."""

  VERSION = tfds.core.Version('1.0.0')

  @abc.abstractmethod
  def _files(self) -> tff.Files:
    """Returns the published files."""

  @abc.abstractmethod
  def _features(self, example: tff.Example) -> dict[str, Any]:
    """Returns the features of an example, besides `client_id`."""

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    files = self._files()
    reader = tff.Reader(Path(dl_manager.manual_dir), files, Path(dl_manager.download_dir))
    return {split: self._generate_examples(reader, split) for split in files.splits}

  def _generate_examples(
    self, reader: tff.Reader, split: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for i, (client, example) in enumerate(reader.examples(split)):
      yield i, {**self._features(example), 'client_id': client}
