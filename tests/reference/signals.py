"""What a process hears when it is started by a test."""

import sys

_CODE = (
  'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); '
  'os.execv(sys.argv[1], sys.argv[1:])'
)


def heard(*command):
  """Returns the command so that Ctrl-C is heard; what a shell starts in the background ignores it.

  The first word is a path.
  """
  return [sys.executable, '-c', _CODE, *map(str, command)]
