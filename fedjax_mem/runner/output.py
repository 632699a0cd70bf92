"""Output that may go away, or cannot show a character: neither may end a run.

A pipe whose reader has left (`fedjax-mem run … | head -1`), a lost terminal and a full disk swallow
what is written from then on. What an encoding such as ASCII or cp1252 lacks is spelled out.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_SPELLED = str.maketrans(
  {
    'ε': 'epsilon', 'δ': 'delta', 'σ': 'sigma', '·': '|', '±': '+-', '×': 'x', '★': '*', '∞': 'inf',
    '…': '...', '–': '-', '—': '-', '−': '-', '≥': '>=', '≤': '<=', '²': '^2', '→': '->', '▸': '>',
  }
)  # fmt: skip


class Steady:
  """A text stream that never raises when it is written to."""

  def __init__(self, stream: TextIO):
    """Takes the stream that is written to."""
    self._stream, self._gone = stream, False

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    """Writes a text as far as the stream can, and returns its length."""
    if self._gone:
      return len(text)
    try:
      try:
        self._stream.write(text)
      except UnicodeEncodeError:
        self._stream.write(shown(text, self._stream.encoding))
    except BlockingIOError:  # its reader is slow, and still there
      pass
    except (OSError, ValueError):  # the latter: it is closed
      self._leave()
    return len(text)

  def flush(self) -> None:
    """Sends what was written, if anybody takes it."""
    if self._gone:
      return
    try:
      self._stream.flush()
    except (OSError, ValueError):
      self._leave()

  def _leave(self) -> None:
    """Writes nothing from now on; what the stream still holds must not fail at the very end."""
    self._gone = True
    with contextlib.suppress(OSError, ValueError):
      descriptor = self._stream.fileno()
      nowhere = os.open(os.devnull, os.O_WRONLY)
      os.dup2(nowhere, descriptor)
      os.close(nowhere)


def shown(text: str, encoding: str | None) -> str:
  """Returns a text that an encoding can show: symbols are spelled out, others become '?'.

  >>> shown('ε ≤ 2 · né', 'ascii')
  'epsilon <= 2 | n?'

  Args:
    text: any.
    encoding: name of an encoding; None: ASCII.
  """
  name = encoding or 'ascii'
  spelled = ''.join(x if _has(x, name) else x.translate(_SPELLED) for x in text)
  return spelled.encode(name, 'replace').decode(name)


def _has(character: str, encoding: str) -> bool:
  try:
    character.encode(encoding)
  except UnicodeEncodeError:
    return False
  return True


def steady(stream: TextIO | None) -> Any:
  """Returns a stream as a steady one; None, where there is no output at all, stays None."""
  return stream if stream is None or isinstance(stream, Steady) else Steady(stream)


@contextlib.contextmanager
def steadied() -> Iterator[None]:
  """Makes standard output and standard error steady while a command runs."""
  before = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = steady(sys.stdout), steady(sys.stderr)
  try:
    yield
  finally:
    for stream in (sys.stdout, sys.stderr):
      if stream is not None:
        stream.flush()
    sys.stdout, sys.stderr = before


def own_words() -> None:
  """Lets only Python write to standard output; what libraries print there goes to standard error.

  Libraries for messages between processes greet each other on descriptor 1, in the midst of the
  progress bar.
  """
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
    terminal = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(terminal, 'w', encoding=sys.stdout.encoding, buffering=1)  # noqa: SIM115
