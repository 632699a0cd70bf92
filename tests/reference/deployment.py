"""A deployment on this machine for tests: kits, the engine's processes, and what a job recorded."""

import json
import os
import pathlib
import socket
import time

from fedjax_mem.deploy import jobs, keys
from fedjax_mem.deploy.kit import Kit
from fedjax_mem.deploy.processes import Engine

ECHO = pathlib.Path(__file__).parent / 'deploy_echo'
ROOT = ECHO.parents[2]


def free_ports(count):
  """Returns ports that nobody listens at."""
  sockets = [socket.create_server(('localhost', 0)) for _ in range(count)]
  ports = [s.getsockname()[1] for s in sockets]
  for s in sockets:
    s.close()
  return ports


def until(holds, seconds, what):
  """Waits until `holds()` is true and returns it, for so many seconds."""
  deadline = time.monotonic() + seconds
  while not (found := holds()):
    assert time.monotonic() < deadline, f'not within {seconds} s: {what}'
    time.sleep(0.1)
  return found


class Deployment:
  """A server and clients that echo.

  Attributes:
    kits: folder of the kits.
    work: folder of the work folders.
    engines: the engines that run, by name.
  """

  def __init__(self, folder, clients):
    self.kits, self.work = folder / 'kits', folder / 'work'
    port, admin_port = free_ports(2)
    keys.provision(self.kits, clients, port=port, admin_port=admin_port)
    self.clients = clients
    self.record = self.work / 'record.jsonl'
    self.engines = {}
    self._jobs = 0

  def kit(self, name):
    return Kit.open(self.kits / name, 'server' if name == 'server' else 'client')

  def start(self, name, kit=None, work=None, **place):
    """Starts the engine of a party, or starts it again."""
    if name in self.engines:
      self.engines.pop(name).stop()
    kit = kit or self.kit(name)
    place = {'outcome': str(self.work / f'{name}.json'), 'record': str(self.record)} | place
    before = os.environ.get('PYTHONPATH')
    os.environ['PYTHONPATH'] = os.pathsep.join((str(ECHO), str(ROOT)))
    try:
      self.engines[name] = Engine(kit, work or kit.work, place)
    finally:
      del os.environ['PYTHONPATH']
      if before is not None:
        os.environ['PYTHONPATH'] = before
    return self.engines[name]

  def tell_server(self, **place):
    """Changes what the server's next job finds in its place file."""
    file = self.kit('server').work / 'place.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | place))

  def job(self, change=None):
    """Makes the folder of a job; `change` may alter it."""
    self._jobs += 1
    job = jobs.make(self.work / f'job-{self._jobs}', b'payload', len(self.clients))
    if change:
      change(job)
    return job

  def rounds(self):
    """Returns what the last job recorded."""
    try:
      return [json.loads(line) for line in self.record.read_text().splitlines()]
    except (OSError, ValueError):
      return []

  def outcome(self, name='server'):
    """Returns the outcome that a party's job has told, None if it has not."""
    try:
      return json.loads((self.work / f'{name}.json').read_text())
    except OSError:
      return None

  def stop(self):
    for engine in self.engines.values():
      engine.stop()
    self.engines.clear()
