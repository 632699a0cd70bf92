"""Where the processes of a launched run write what they say: files that move with open ends.

A run's folder is made by its processes, after they have begun to speak. Until then their logs are
in a hidden folder beside it. A file that is moved within a file system stays open for its writer.
"""

import contextlib
import itertools
import pathlib
import shutil
import tempfile

FOLDER = 'logs'


class Logs:
  """The logs of the processes of one run, `process-0.txt` and so on; a context manager.

  At its end the hidden folder is gone, save for logs that are to be kept and have no other place.
  """

  def __init__(self, out: pathlib.Path, count: int):
    """Makes the hidden folder.

    Args:
      out: folder in which the run's folder is, or will be made; made if missing.
      count: number of processes.

    Raises:
      ValueError: it cannot be written.
    """
    self._count, self._moved, self._kept = count, False, False
    self._made = [x for x in (out, *out.parents) if not x.exists()]  # deepest first
    try:
      out.mkdir(parents=True, exist_ok=True)
      self._hidden = self._place = pathlib.Path(tempfile.mkdtemp(prefix='.launch-', dir=out))
    except OSError as error:
      raise ValueError(f'the folder {out} must be writable, got {error}.') from error

  def __enter__(self) -> 'Logs':
    return self

  def __exit__(self, *error: object) -> None:
    if not self._kept or self._place != self._hidden:
      shutil.rmtree(self._hidden, ignore_errors=True)
    for path in self._made:
      with contextlib.suppress(OSError):  # there is something in it
        path.rmdir()

  def path(self, index: int) -> pathlib.Path:
    """Returns the log of a process, where it is now."""
    return self._place / f'process-{index}.txt'

  def keep(self) -> None:
    """Says that the logs are to be kept also if the run never has a folder."""
    self._kept = True

  def follow(self, folder: str | None) -> None:
    """Moves the logs into the folder of the run, once it has one; they move once.

    Those of an earlier launch stay there as `process-0.1.txt`, `process-0.2.txt` and so on. Where
    they cannot be moved (another file system) they are kept where they are.

    Args:
      folder: the run's folder; None: it has none yet.
    """
    if folder is None or self._moved:
      return
    self._moved, place = True, pathlib.Path(folder) / FOLDER
    try:
      place.mkdir(exist_ok=True)
      for index in range(self._count):
        before = self.path(index)
        _keep_earlier(place / before.name)
        before.rename(place / before.name)
      self._place = place
    except OSError:
      self._kept = True


def _keep_earlier(path: pathlib.Path) -> None:
  """Gives a file another name, if there is one."""
  if path.exists():
    free = (path.with_suffix(f'.{x}{path.suffix}') for x in itertools.count(1))
    path.rename(next(x for x in free if not x.exists()))
