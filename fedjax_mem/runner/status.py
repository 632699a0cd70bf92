"""What a process of a run in several processes says of itself, and that it ends with its parent.

`fedjax-mem launch` starts the processes, tells each its part in the environment variable `CLUSTER`,
and reads the status files to see which one does not answer any more. Without the variable nothing
of this exists.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import sys
import threading
from typing import Any

CLUSTER = 'FEDJAX_MEM_CLUSTER'  # a process's part, as JSON (`launching.part`)
PARENT = 'FEDJAX_MEM_PARENT'  # the id of the process that has started this one
PHASES = ('starting', 'round', 'evaluation', 'checkpoint', 'ending', 'done')
_PERIOD = 1.0  # seconds between two beats
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_parent: int | None = None  # of this process, once it is bound


class Status:
  """The status file of this process, written again every second by a thread.

  It is a JSON object: `pid`; `beat`, which grows by each writing; `phase`, one of `PHASES`;
  `round`, the rounds that are done, and one more while one runs; `folder`, that of the run, null
  before it is made. The file is replaced whole, so that a reader never sees a part of one. A full
  disk ends nothing: the file is as it was.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Writes the file for the first time, and binds this process to its parent (`tie`).

    Args:
      path: the file, in a folder that is there.
    """
    self._path, self._lock = pathlib.Path(path), threading.Lock()
    self._said: dict[str, Any] = {
      'pid': os.getpid(),
      'beat': 0,
      'phase': PHASES[0],
      'round': 0,
      'folder': None,
    }
    self._parent = tie()
    self._write()
    threading.Thread(target=self._beat, name='status', daemon=True).start()

  def at(self, phase: str, round: int | None = None) -> None:
    """Says where this process is.

    Args:
      phase: one of `PHASES`.
      round: rounds that are done, and one more while one runs; None: as before.

    Raises:
      ValueError: there is no such phase.
    """
    if phase not in PHASES:
      raise ValueError(f'phase must be one of {", ".join(PHASES)}, got {phase!r}.')
    self._write(phase=phase, **({} if round is None else {'round': int(round)}))

  def folder(self, path: str | os.PathLike[str]) -> None:
    """Says which folder is the run's."""
    self._write(folder=os.fspath(path))

  def _write(self, **facts: Any) -> None:
    with self._lock:
      self._said |= facts
      self._said['beat'] += 1
      beside = self._path.with_name(self._path.name + '.tmp')
      with contextlib.suppress(OSError):
        beside.write_text(json.dumps(self._said), encoding='utf-8')
        os.replace(beside, self._path)

  def _beat(self) -> None:
    pause = threading.Event()
    while not pause.wait(_PERIOD):
      end_without(self._parent)
      self._write()


def read(path: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Returns what a status file says, None if there is none, or none that can be read."""
  with contextlib.suppress(OSError, ValueError):
    said = json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
    if isinstance(said, dict):
      return said
  return None


def tie() -> int:
  """Binds this process to its parent, and returns the parent's id.

  On Linux the kernel kills it when the parent ends, also where this process is stopped and could
  not look for itself: the signal comes when the parent's thread ends that has started it, which is
  the main thread of `fedjax-mem launch`. A parent that has ended before is noticed here, for its id
  is in the environment; what this process starts does not get that id.
  """
  global _parent
  _parent = _parent or int(os.environ.pop(PARENT, 0)) or os.getppid()
  if sys.platform == 'linux':
    with contextlib.suppress(AttributeError, OSError):
      ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
  end_without(_parent)
  return _parent


def end_without(parent: int) -> None:
  """Ends this process at once if its parent is another one by now: the former is gone."""
  if os.getppid() != parent:
    os._exit(1)
