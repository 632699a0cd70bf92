"""Processes of the engine end with whoever started them, also if that one is killed (`kill -9`).

A thread looks at the parent's id. The kernel's own signal (PR_SET_PDEATHSIG) will not do: it comes
when the THREAD ends that started the process, and the engine starts jobs from threads that end.
"""

import contextlib
import os
import signal
import threading
import time

PARENT = 'FEDJAX_MEM_DEPLOY_PARENT'  # process id of the engine's first process on this machine
_PERIOD = 0.5  # seconds between two looks


def end_with(parent: int) -> None:
  """Ends this process and all that it started, with SIGKILL, within a second of its parent's end.

  Args:
    parent: process id of the parent. If it is not any more, this process ends at once.
  """
  if os.getppid() != parent:
    os._exit(1)
  threading.Thread(target=_look, args=(parent,), name='end_with_parent', daemon=True).start()


def end_with_engine() -> None:
  """As `end_with`, for a job's process: its parent is the engine's first process."""
  if PARENT in os.environ:
    end_with(int(os.environ[PARENT]))


def _look(parent: int) -> None:
  while os.getppid() == parent:
    time.sleep(_PERIOD)
  for pid in descendants(os.getpid()):
    kill(pid)
  os.kill(os.getpid(), signal.SIGKILL)


def descendants(pid: int) -> list[int]:
  """Returns the ids of all processes below one, deepest last."""
  import psutil

  try:
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]
  except psutil.NoSuchProcess:
    return []


def kill(pid: int) -> None:
  """Kills a process; that it has ended already is no error."""
  with contextlib.suppress(ProcessLookupError):
    os.kill(pid, signal.SIGKILL)
