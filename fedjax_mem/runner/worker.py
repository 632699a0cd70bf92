"""One process of a launched run, as seen from outside: whether it lives, and what it said."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from fedjax_mem.runner import status

BAD_INPUT = 2
STOPS = {128 + x: x for x in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
_TAIL = 2**16  # bytes of a log that are looked at: a process may have said megabytes
# What jax says in a process whose cluster has lost another one; Gloo greets in all of them.
_LOST = re.compile(
  r'coordination.?service|distributed service|heartbeat|gloo.*(failed|error)|'
  r'(connection (reset|closed)|broken pipe).*peer',
  re.IGNORECASE,
)


class Worker:
  """A process, its log and its status file.

  Attributes:
    index: its number in the cluster, from 0.
    code: its exit code, negative the number of the signal that killed it; None: it has not ended.
    said: its status as last read; empty before the first.
    still: seconds since its status has changed; 0 before the first.
    halted: seconds since it was stopped (as by SIGSTOP); 0: it is not.
    halt: number of the signal that has stopped it.
    seen: the look, counted from 1, in which its end was seen.
  """

  def __init__(
    self,
    index: int,
    process: 'subprocess.Popen[bytes]',
    log: Callable[[], pathlib.Path],
    file: pathlib.Path,
  ):
    """Takes a process that leads a session of its own.

    Args:
      index: its number in the cluster.
      process: the process.
      log: returns the file of what it says, which may move.
      file: its status file.
    """
    self.index = index
    self.code: int | None = None
    self.said: dict[str, Any] = {}
    self.still = self.halted = 0.0
    self.halt = self.seen = 0
    self._process, self._log, self._file, self._looks = process, log, file, 0

  @property
  def died(self) -> bool:
    """Whether it has ended as no run ends: not done, no bad input, and not by request."""
    return self.code not in (None, 0, BAD_INPUT, *STOPS)

  @property
  def lost(self) -> bool:
    """Whether it seems to have ended because another process of its cluster had."""
    kills = self.code is not None and self.code < 0 and self.code != -signal.SIGABRT
    return self.died and not kills and bool(_LOST.search(self.tail()))

  def look(self, step: float) -> None:
    """Looks at the process and its status.

    Args:
      step: seconds that count as gone since the last look: few, where this process was itself
        stopped meanwhile, for then nothing is known of the others.
    """
    self._looks += 1
    if self.code is None:
      self.halt = self._stopped()
      self.halted = self.halted + step if self.halt else 0.0
      self.code = self._process.poll()
      if self.code is not None:
        self.seen, self.halted = self._looks, 0.0
        self._kill_group()  # what it has started ends with it
    said = status.read(self._file)
    if said is not None:
      self.still = 0.0 if said.get('beat') != self.said.get('beat') else self.still + step
      self.said = said

  def _stopped(self) -> int:
    """Returns the number of the signal that has stopped it, 0 if it is not stopped."""
    with contextlib.suppress(ChildProcessError):  # it has ended
      found = os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
      return found.si_status if found else 0
    return 0

  def tell(self, number: int) -> None:
    """Sends it a signal, unless it has ended."""
    if self.code is None:
      self._process.send_signal(number)

  def kill(self) -> None:
    """Kills it and all that it has started, unless it has ended."""
    if self.code is None:
      self._kill_group()

  def _kill_group(self) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self._process.pid, signal.SIGKILL)

  def wait(self, timeout: float) -> bool:
    """Waits up to `timeout` seconds for its end, and returns whether it has ended."""
    if self.code is None:
      with contextlib.suppress(subprocess.TimeoutExpired):
        self.code = self._process.wait(timeout)
    return self.code is not None

  def end(self) -> str:
    """Returns how it has ended, or that it does not answer."""
    if self.code is None:
      if self.halted:
        return f'stopped by {_name(self.halt)}: does not answer'
      return f'does not answer: no sign of life for {self.still:.0f} s, or does not end'
    return f'killed by {_name(-self.code)}' if self.code < 0 else f'exit code {self.code}'

  def where(self) -> str:
    """Returns the round and the phase of its last status, '' if there is none."""
    if not self.said:
      return ''
    if self.said.get('phase') == status.PHASES[0]:
      return 'at its start'
    return f'in round {self.said.get("round", 0)} ({self.said.get("phase")})'

  def tail(self) -> str:
    """Returns the end of its log."""
    try:
      with self._log().open('rb') as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
        return file.read().decode(errors='replace')
    except OSError:
      return ''

  def words(self, kind: str) -> str:
    """Returns its last line `fedjax-mem: <kind>: …` without that beginning, '' if there is none.

    Args:
      kind: 'error', 'failed' or 'interrupted'.
    """
    found = re.findall(rf'^fedjax-mem: {kind}: (.*)$', self.tail(), re.MULTILINE)
    return str(found[-1]).strip() if found else ''


def _name(number: int) -> str:
  try:
    return signal.Signals(number).name
  except ValueError:
    return f'signal {number}'
