"""What a process hears when it is started by a test."""

import signal


def heard():
  """For `preexec_fn`: Ctrl-C is heard; a shell has what it starts in the background ignore it."""
  signal.signal(signal.SIGINT, signal.SIG_DFL)
