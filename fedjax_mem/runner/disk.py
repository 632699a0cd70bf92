"""A full disk, in words of what to do."""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(OSError):
  """Nothing more can be written; the message says where, and how to go on."""


def reason(error: BaseException) -> str | None:
  """Returns what the system says of a full disk or quota; None: the error is another one.

  Args:
    error: of the system, or of a library that only quotes it.
  """
  for number in _FULL:
    if getattr(error, 'errno', None) == number or os.strerror(number) in str(error):
      return os.strerror(number)
  return None


@contextlib.contextmanager
def told(folder: pathlib.Path, again: str) -> Iterator[None]:
  """Says of a full disk, met within, how to go on.

  Args:
    folder: what is written there.
    again: the command that goes on.

  Raises:
    DiskFull: an error of the system says that the disk is full.
  """
  try:
    yield
  except DiskFull:
    raise
  except OSError as error:
    said = reason(error)
    if said is None:
      raise
    raise DiskFull(
      f'the disk of {folder} is full ({said}): free some space, then go on with `{again}`.'
    ) from error
