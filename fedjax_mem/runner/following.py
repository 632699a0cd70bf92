"""What processes beside process 0 have in place of what it writes: the same names, nothing done."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from fedjax_mem.config.load import Config
from fedjax_mem.runner.cluster import Cluster
from fedjax_mem.runner.folder import RunFolder, create
from fedjax_mem.runner.progress import Progress


class Follower(RunFolder):
  """A run's folder whose manifest is in memory: process 0 writes it, and holds the lock."""

  def __init__(self, path: pathlib.Path, manifest: dict[str, Any]):
    """Takes what process 0 has read or made."""
    self.path, self.manifest = path, manifest

  def note(self, **facts: Any) -> None:
    """Adds facts in memory."""
    self.manifest |= facts

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Holds no lock."""
    yield


class Silent(Progress):
  """A progress that shows nothing."""

  def __init__(self, total: int, start: int = 0, quiet: bool = True):
    """Takes what `Progress` does."""
    super().__init__(total, start, quiet=True)
    self._bar = None

  def note(self, text: str) -> None:
    """Writes nothing."""

  def _print(self) -> None:
    pass


class NoWriter:
  """Records that are written elsewhere."""

  def write(self, record: Mapping[str, Any]) -> None:
    """Writes nothing."""

  def sync(self) -> None:
    """Has nothing to wait for."""

  def __enter__(self) -> 'NoWriter':
    return self

  def __exit__(self, *error: object) -> None:
    pass


@contextlib.contextmanager
def heard(cluster: Cluster) -> Iterator[None]:
  """Tells the other processes of an error of process 0, which they would wait for in vain."""
  try:
    yield
  except BaseException as error:
    cluster.refuse(error)
    raise


def made(cluster: Cluster, config: Config, *given: Any) -> RunFolder:
  """Returns the folder of a new run, which process 0 makes; the arguments are those of `create`."""
  folder = create(config, *given) if cluster.leads else None
  return _shared(cluster, folder)


def opened(cluster: Cluster, path: pathlib.Path) -> RunFolder:
  """Returns the folder of a run, which process 0 reads."""
  return _shared(cluster, RunFolder(path) if cluster.leads else None)


def _shared(cluster: Cluster, folder: RunFolder | None) -> RunFolder:
  said: list[Any] = [] if folder is None else [str(folder.path.absolute()), folder.manifest]
  path, manifest = said if cluster.processes == 1 else cluster.agree(said)
  return folder or Follower(pathlib.Path(path), manifest)


@contextlib.contextmanager
def locked(cluster: Cluster, folder: RunFolder) -> Iterator[None]:
  """Holds the lock of the folder, and then says to a parent which folder it is."""
  with folder.locked():
    cluster.agree(None)  # the others go on when process 0 has it
    if cluster.status is not None:
      cluster.status.folder(folder.path)
    yield
