"""The memory that a run has, and the largest chunk of clients that fits it."""

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from fedjax_mem.core import validate
from fedjax_mem.engine import Simulation

MB = 10**6


class Room(NamedTuple):
  """Memory that there is.

  Attributes:
    bytes: how much.
    whose: 'a device', or 'all devices' (of a process) where these share it.
    source: where the number is from.
  """

  bytes: int
  whose: str
  source: str


def largest(fits: Callable[[int], bool], most: int) -> int:
  """Returns the largest chunk up to `most` that fits, or 0, if none that is larger than one does.

  >>> largest(lambda chunk: chunk <= 6, 50)
  6

  Args:
    fits: chunk -> whether it fits; no chunk does that is larger than one that does not.
    most: the largest that is asked for, >= 1.
  """
  low, high = 0, 1
  while high <= most and fits(high):
    low, high = high, 2 * high
  high = min(high, most + 1)
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low


def shared(made: Simulation) -> bool:
  """Returns whether the devices share one memory, as those of a host do."""
  platform: str = made.setting.layout.mesh.devices.flat[0].platform
  return platform == 'cpu'


def of(made: Simulation, given_mb: float | None = None, processes: int = 1) -> Room:
  """Returns the memory there is, or that is given.

  Args:
    made: the simulation, whose devices are asked.
    given_mb: 10**6 bytes that are taken in place of what there is.
    processes: that share the memory of this machine, if its devices do.

  Raises:
    ValueError: not > 0, or a device that does not say how much it has.
  """
  several = processes > 1
  whose = f'all devices{" of a process" * several}' if shared(made) else 'a device'
  if given_mb is not None:
    return Room(round(validate.positive(memory=given_mb) * MB), whose, 'given')
  if shared(made):
    source = f'of this machine, divided by {processes}' if several else 'of this machine'
    return Room(_physical() // processes, whose, source)
  stats = made.setting.layout.mesh.devices.flat[0].memory_stats() or {}
  if 'bytes_limit' not in stats:
    raise ValueError('memory must be given: the device does not say how much it has.')
  return Room(stats['bytes_limit'], whose, 'of the device')


def _physical() -> int:
  """Returns the bytes of memory of this machine, or of its control group if that has fewer."""
  whole = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  try:
    text = pathlib.Path('/sys/fs/cgroup/memory.max').read_text().strip()
  except OSError:
    return whole
  return min(whole, int(text)) if text.isdigit() else whole
