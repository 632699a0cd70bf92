"""Ctrl-C: the first ends a run after the segment that is running, the second ends it at once."""

import os
import signal
import sys
import threading
from collections.abc import Callable

INTERRUPTED = 130  # the exit code of a process that was ended by Ctrl-C
_SEGMENT = 'ends after this segment of rounds'
_SHOW_CURSOR = '\x1b[?25h'


class Interrupt:
  """A context manager that watches for Ctrl-C; outside the main thread it does nothing.

  A Python signal handler has to wait until the main thread returns from compiled code, which takes
  minutes during compilation. So the signal's number is written into a pipe at once
  (`signal.set_wakeup_fd`), and a thread of this class reads it there.

  Attributes:
    asked: whether the run is to end after its segment.
  """

  def __init__(self, say: Callable[[str], None], farewell: str, what: str = _SEGMENT):
    """Prepares to notice Ctrl-C.

    Args:
      say: shows a line to the user.
      farewell: text shown when the second Ctrl-C ends the process.
      what: text of what the first Ctrl-C does.
    """
    self._say, self._farewell, self._what = say, farewell, what
    self._asked = threading.Event()
    self._thread: threading.Thread | None = None

  @property
  def asked(self) -> bool:
    """Whether the run is to end after its segment."""
    return self._asked.is_set()

  def __enter__(self) -> 'Interrupt':
    if threading.current_thread() is threading.main_thread():
      self._read, self._write = os.pipe()
      os.set_blocking(self._write, False)
      self._before = signal.signal(signal.SIGINT, lambda number, frame: None)
      self._pipe_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
      self._thread = threading.Thread(target=self._watch, name='interrupt', daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *error: object) -> None:
    if self._thread is not None:
      signal.set_wakeup_fd(self._pipe_before)
      signal.signal(signal.SIGINT, self._before)
      os.close(self._write)  # the thread reads the end of the file and returns
      self._thread.join()
      os.close(self._read)

  def _watch(self) -> None:
    while number := os.read(self._read, 1):
      if number[0] != signal.SIGINT:
        continue
      if self.asked:
        self._end()
      self._asked.set()
      self._say(f'interrupted: {self._what}; Ctrl-C again ends at once')

  def _end(self) -> None:
    cursor = _SHOW_CURSOR if sys.stdout.isatty() else ''  # the progress bar hides the cursor
    print(f'{cursor}\nfedjax-mem: interrupted: {self._farewell}', file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)  # at once: the main thread may be inside the compiler
