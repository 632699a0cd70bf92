"""A process of a launched run, without jax: it does what its part of a plan says.

`python launched.py PLACE PLAN …`: PLACE is a folder that is there, PLAN is JSON, the Python of each
process by its number.
"""

import json
import os
import pathlib
import signal
import sys
import time

from fedjax_mem.runner import status

TOLD = json.loads(os.environ[status.CLUSTER])
INDEX = TOLD['process']
PLACE = pathlib.Path(sys.argv[1])
RUN = PLACE / 'out' / 'a-run'
AGAIN = f'go on with: fedjax-mem resume {RUN}'


def say(text):
  print(text, file=sys.stderr, flush=True)


def known(pid):
  """Writes down a process that must not be left."""
  with (PLACE / 'pids').open('a') as file:
    file.write(f'{pid}\n')


def of(index):
  """Returns the status of another process, {} before there is one."""
  return status.read(pathlib.Path(TOLD['status']).with_name(f'status-{index}.json')) or {}


def until(found):
  while not found():
    time.sleep(0.01)


def begin(round=3, phase='round'):
  """Takes part, as process 0 with the run's folder, and waits until all others do."""
  mine = status.Status(TOLD['status'])
  if INDEX == 0:
    RUN.mkdir(parents=True, exist_ok=True)
    mine.folder(RUN)
  mine.at(phase, round)
  until(lambda: all(of(x).get('phase', 'starting') != 'starting' for x in range(TOLD['processes'])))
  return mine


def gone(index):
  """Waits until another process has ended."""
  pid = of(index)['pid']

  def ended():
    try:
      return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] in 'ZX'
    except OSError:
      return True

  until(ended)


def hang():
  """Does nothing for a long time, whatever it is asked."""
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  time.sleep(60)


def kill(number):
  os.kill(os.getpid(), number)


def heeds():
  """Ends by request after a checkpoint, as process 0 does."""
  asked = []
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda number, frame: asked.append(number))
  begin()
  print('round 3', flush=True)
  until(lambda: asked)
  say(f'fedjax-mem: interrupted: {signal.Signals(asked[0]).name}: stopped; {AGAIN}')
  os._exit(128 + asked[0])


if __name__ == '__main__':
  known(os.getpid())
  exec(json.loads(sys.argv[2])[str(INDEX)])
