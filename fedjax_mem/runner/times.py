"""What a run spends its time on besides its rounds."""

import contextlib
import time
from collections.abc import Iterator, Mapping


class Times:
  """Adds up seconds by name."""

  def __init__(self) -> None:
    """Starts at zero."""
    self._spent: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, name: str) -> Iterator[None]:
    """Adds the time of what runs inside to that of its name."""
    began = time.perf_counter()
    try:
      yield
    finally:
      self._spent[name] = self._spent.get(name, 0.0) + time.perf_counter() - began

  def since(self, before: Mapping[str, float]) -> dict[str, float]:
    """Returns the seconds by name, with those of the same run before it was resumed."""
    names = dict.fromkeys((*before, *self._spent))
    return {x: round(before.get(x, 0.0) + self._spent.get(x, 0.0), 3) for x in names}
