"""The engine's log does not grow without limit: lines that repeat become rare."""

import logging
import re
import time

_FIRST = 10  # lines of a kind that are all written
_PAUSE = 300.0  # seconds without a line of a kind, after which it counts as new
_VARYING = re.compile(r'[0-9a-f]*[0-9][0-9a-f]*')  # numbers, and ids of hexadecimal digits


class Seldom(logging.Filter):
  """Lets the first lines of a kind pass, then the 16th, 32nd, 64th, ….

  A client whose server is away writes several lines a second, for days. Lines are of a kind if they
  differ in numbers and ids alone.
  """

  def __init__(self) -> None:
    super().__init__()
    self._seen: dict[str, tuple[int, float]] = {}  # kind -> (lines, when the last one came)

  def filter(self, record: logging.LogRecord) -> bool:
    """Returns whether a line is written."""
    kind, now = f'{record.name} {_VARYING.sub("", record.getMessage())[:200]}', time.monotonic()
    count, last = self._seen.get(kind, (0, now))
    count = 1 if now - last > _PAUSE else count + 1
    self._seen[kind] = (count, now)
    return count <= _FIRST or count & (count - 1) == 0
