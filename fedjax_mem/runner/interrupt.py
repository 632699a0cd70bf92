"""Signals that end a run: Ctrl-C, and SIGTERM and SIGHUP of a scheduler or a lost terminal.

The first ends the run after the segment of rounds that is running, with a checkpoint; a second
Ctrl-C ends it at once. Other signals may come again: schedulers repeat them before they kill.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable

INTERRUPTED = 130  # the exit code of a process that was ended by Ctrl-C
_HEARD = ('SIGINT', 'SIGTERM', 'SIGHUP')  # those that the system has
_SEGMENT = 'ends after this segment of rounds'
_SHOW_CURSOR = '\x1b[?25h'


class Interrupt:
  """A context manager that watches for signals; outside the main thread it does nothing.

  A Python signal handler has to wait until the main thread returns from compiled code, which takes
  minutes during compilation. So the signal's number is written into a pipe at once
  (`signal.set_wakeup_fd`), and a thread of this class reads it there.

  SIGTERM and SIGHUP stay ignored where they are (`nohup`).

  Attributes:
    asked: whether the run is to end after its segment.
    code: exit code of a process that ended so: 128 and the number of the first signal.
    words: text of what has ended the run, such as 'SIGTERM'.
  """

  def __init__(self, say: Callable[[str], None], farewell: str, what: str = _SEGMENT):
    """Prepares to notice signals.

    Args:
      say: shows a line to the user.
      farewell: text shown when the second Ctrl-C ends the process.
      what: text of what the first signal does.
    """
    self._say, self._farewell, self._what = say, farewell, what
    self._asked = threading.Event()
    self._thread: threading.Thread | None = None
    self._first, self._pressed = signal.SIGINT, False
    self._before: dict[signal.Signals, object] = {}

  @property
  def asked(self) -> bool:
    """Whether the run is to end after its segment."""
    return self._asked.is_set()

  @property
  def code(self) -> int:
    """The exit code of a process that the first signal ended."""
    return 128 + self._first

  @property
  def words(self) -> str:
    """What has ended the run."""
    return 'Ctrl-C' if self._first == signal.SIGINT else self._first.name

  def __enter__(self) -> 'Interrupt':
    if threading.current_thread() is threading.main_thread():
      self._read, self._write = os.pipe()
      os.set_blocking(self._write, False)
      for number in self._watched():
        self._before[number] = signal.signal(number, lambda number, frame: None)
      self._pipe_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
      self._thread = threading.Thread(target=self._watch, name='interrupt', daemon=True)
      self._thread.start()
    return self

  @staticmethod
  def _watched() -> list[signal.Signals]:
    there = [signal.Signals[x] for x in _HEARD if x in signal.Signals.__members__]
    return [x for x in there if x == signal.SIGINT or signal.getsignal(x) != signal.SIG_IGN]

  def __exit__(self, *error: object) -> None:
    if self._thread is not None:
      signal.set_wakeup_fd(self._pipe_before)
      for number, before in self._before.items():
        # None: set by other code than Python's, which cannot be set again from here.
        signal.signal(number, signal.SIG_DFL if before is None else before)  # type: ignore[arg-type]
      os.close(self._write)  # the thread reads the end of the file and returns
      self._thread.join()
      os.close(self._read)

  def _watch(self) -> None:
    while number := os.read(self._read, 1):
      if number[0] not in self._before:
        continue
      self._hear(signal.Signals(number[0]))

  def _hear(self, number: signal.Signals) -> None:
    if number == signal.SIGINT and self._pressed:
      self._end()
    if not self.asked:
      self._first = number
    self._asked.set()
    if number == signal.SIGINT:
      self._pressed = True
      self._say(f'interrupted: {self._what}; Ctrl-C again ends at once')
    else:
      self._say(f'{number.name}: {self._what}')

  def _end(self) -> None:
    cursor = _SHOW_CURSOR if sys.stdout.isatty() else ''  # the progress bar hides the cursor
    print(f'{cursor}\nfedjax-mem: interrupted: {self._farewell}', file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)  # at once: the main thread may be inside the compiler
