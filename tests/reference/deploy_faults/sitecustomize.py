"""Holds a deployment's server between two rounds, and kills processes at a chosen point of a round.

A test puts this folder first on PYTHONPATH and names a folder of two files in FAULTS: `gate`, the
number of rounds that may end, and `kill`, once: point, round, and who is killed. Only the job's
process at the server is changed.
"""

import importlib.abc
import importlib.util
import os
import pathlib
import signal
import sys
import time

POINTS = ('charged', 'collecting', 'stepped', 'checkpoint')


def die(faults, point, round):
  """Kills whom the file names, if it names this point; then does not go on."""
  try:
    wanted, number, whom = (faults / 'kill').read_text().split()
  except OSError:
    return
  if (wanted, int(number)) != (point, round):
    return
  import psutil

  (faults / 'kill').unlink()
  me = psutil.Process()
  found = {'job': me, 'engine': me.parent(), 'command': me.parent().parent()}
  for name in ('command', 'engine', 'job'):
    if whom in (name, 'all'):
      os.kill(found[name].pid, signal.SIGKILL)
  time.sleep(60)


def change(serving, faults):
  """Puts the gate and the points into the module of the server's rounds."""
  from fedjax_mem.deploy.flare import _Answered

  server, under_way = serving._Server, [0]
  leave, begin, publish = server._leave, server._begin, server._publish
  take, rename = _Answered.take, os.rename

  def held(self):
    records = self._folder.path / 'metrics.jsonl'
    while not leave(self):
      done = len(records.read_bytes().splitlines()) if records.exists() else 0
      if done < int((faults / 'gate').read_text()):
        return False
      time.sleep(0.02)
    return True

  def charged(self, state):
    drawn = begin(self, state)
    under_way[0] = int(state.round) + 1
    die(faults, 'charged', under_way[0])
    return drawn

  def collecting(self, **told):
    take(self, **told)
    if under_way[0]:
      die(faults, 'collecting', under_way[0])

  def stepped(self, done, *rest):
    die(faults, 'stepped', int(done.state.round))
    publish(self, done, *rest)

  def checkpoint(source, target, **options):
    if pathlib.Path(target).parent.name == 'checkpoints':
      die(faults, 'checkpoint', under_way[0])
    rename(source, target, **options)

  server._leave, server._begin, server._publish = held, charged, stepped
  _Answered.take, os.rename = collecting, checkpoint


class Finder(importlib.abc.MetaPathFinder):
  """Finds the module of the server's rounds, and changes it once it is loaded."""

  def find_spec(self, name, path=None, target=None):
    """Returns where the module is, None for all others."""
    if name != 'fedjax_mem.deploy.serving':
      return None
    sys.meta_path.remove(self)
    spec = importlib.util.find_spec(name)
    load = spec.loader.exec_module

    def exec_module(module):
      load(module)
      change(module, pathlib.Path(os.environ['FAULTS']))

    spec.loader.exec_module = exec_module
    return spec


if 'FEDJAX_MEM_DEPLOY' in os.environ:  # processes of the engine, and not the commands
  sys.meta_path.insert(0, Finder())
