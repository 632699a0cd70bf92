"""What does a round on real machines cost against the simulation? Here: processes on loopback.

python -m benchmarks.deploy [--clients 3] [--rounds 30] [--set model.name=mlp …]

Needs the extra `deploy`. Digits, all clients in every round, FedAvg with top-k of a tenth:

    round       seconds of a deployed round, from its draw to the server's step
    beside      of its checkpoint and record
    compute     client_s: one client's answer, alone, without the engine; clients_s: all of them on
                this machine's cores; server_s: draw, reading the messages, the step
    exchange_s  the same bytes over bare mutual-TLS connections, with the deployment's certificates
    engine_s    the rest of the round
    memory      peak resident MB of each process, of clients the largest
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import psutil

from benchmarks import measure
from fedjax_mem.config.load import Config, load_config
from fedjax_mem.deploy import answering, driving, job, keys, serving
from fedjax_mem.deploy.data import Expected
from fedjax_mem.deploy.kit import Kit
from fedjax_mem.runner.prepare import get_ready

TEXT = """
version = 1
name = "benchmark"
rounds = {rounds}
[data]
name = "digits"
partition = "iid"
num_clients = {clients}
[model]
name = "logistic"
[client]
epochs = 1
batch_size = 20
learning_rate = 0.1
[selection]
cohort_size = {clients}
[weighting]
name = "equal"
[[stages]]
use = "top_k"
options = {{ fraction = 0.1 }}
[evaluation]
every = {rounds}
[deploy]
min_clients = {clients}
"""
# Words of a process's command -> whose it is.
ROLES = {
  'deploy.parent server': 'server, engine',
  'runner_process': 'server, job',
  'deploy server': 'server, command',
  'deploy.parent client': 'client, engine',
  'worker_process': 'client, job',
  'deploy client': 'client, command',
}
_WARM = 3  # first rounds that are not counted: they compile


class Memory(threading.Thread):
  """Looks at the peak memory of all processes that name a folder, until it is stopped."""

  def __init__(self, folder: pathlib.Path):
    super().__init__(daemon=True)
    self._folder, self._end = str(folder), threading.Event()
    self._peaks: dict[int, tuple[str, float]] = {}
    self.processes = 0

  def run(self) -> None:
    """Looks twice a second; the kernel keeps the peak between two looks."""
    while not self._end.wait(0.5):
      here = 0
      for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError, TypeError):
          words = ' '.join(process.cmdline())
          role = next((who for said, who in ROLES.items() if said in words), None)
          if role and self._folder in words:
            status = pathlib.Path(f'/proc/{process.pid}/status').read_text()
            self._peaks[process.pid] = role, int(re.search(r'VmHWM:\s+(\d+)', status)[1]) / 1e3
            here += 1
      self.processes = max(self.processes, here)

  def stop(self) -> dict[str, int]:
    """Returns the largest peak of each role, and the sum of all, in MB."""
    self._end.set()
    self.join()
    found: dict[str, int] = {}
    for role, peak in self._peaks.values():
      found[role] = max(found.get(role, 0), round(peak))
    return found | {'all processes': round(sum(peak for _, peak in self._peaks.values()))}


@contextlib.contextmanager
def started(kits: pathlib.Path, config: pathlib.Path, out: pathlib.Path) -> Iterator[list[Any]]:
  """Starts the commands of all parties; yields them, the server first, and ends what still runs."""
  command = [sys.executable, '-m', 'fedjax_mem.cli.main', 'deploy']
  names = Kit.open(kits / 'server', 'server').clients
  words = [['server', config, '--kit', kits / 'server', '--out', out, '--quiet']]
  words += [['client', '--kit', kits / name, '--wait', 600] for name in names]
  with (kits.parent / 'commands.log').open('w') as log:
    processes = [
      subprocess.Popen([*command, *map(str, x)], stdout=log, stderr=subprocess.STDOUT)
      for x in words
    ]
    try:
      yield processes
      for process in processes:
        process.wait(60)
    finally:
      for process in processes:
        process.terminate()  # the engine ends with its command
        process.wait()


def deployed(folder: pathlib.Path, config: pathlib.Path, clients: int) -> dict[str, Any]:
  """Returns what a deployment on this machine took, as lists over rounds and as peaks."""
  kits = folder / 'kits'
  with socket.create_server(('localhost', 0)) as a, socket.create_server(('localhost', 0)) as b:
    ports = a.getsockname()[1], b.getsockname()[1]
  keys.provision(kits, [f'c{i}' for i in range(clients)], port=ports[0], admin_port=ports[1])
  memory, began, seen = Memory(folder), time.monotonic(), {}
  memory.start()
  with started(kits, config, folder / 'runs') as (server, *others):
    while server.poll() is None and not any(x.poll() for x in others):
      for path in folder.glob('runs/*/metrics.jsonl'):
        seen.setdefault(path.read_bytes().count(b'\n'), time.monotonic())
      time.sleep(0.02)
    if server.poll() != 0:
      raise RuntimeError(f'a party failed: {(folder / "commands.log").read_text()[-2000:]}')
  seen.pop(0, None)
  (run,) = (folder / 'runs').glob('*/')
  records = [json.loads(x) for x in (run / 'metrics.jsonl').read_text().splitlines()]
  log = (run / 'deploy.log').read_text()
  said = re.findall(r'round [1-9]\d*: \w+: \d+ of \d+ in ([\d.]+) s', log)
  if len(said) != len(records):
    raise RuntimeError(f'a round was tried twice: see {run / "deploy.log"}')
  counted = [n for n in sorted(seen) if n >= _WARM]
  wall = (seen[counted[-1]] - seen[counted[0]]) / (counted[-1] - counted[0])
  return {
    'start_s': seen[min(seen)] - began,
    'rounds': np.array([x['seconds'] for x in records[_WARM:]]),
    'exchanges': np.array([float(x) for x in said[_WARM:]]),
    'wall_s': wall,
    'bytes_up': int(np.median([x['bytes_up'] for x in records])),
    'bytes_down': int(np.median([x['bytes_down'] for x in records])),
    'accuracy': records[-1]['test_accuracy'],
    'memory': memory.stop(),
    'processes': memory.processes,
  }


class Direct:
  """The messages of a job as function calls; notes the seconds of each client's answer."""

  def __init__(self, clients: dict[str, Any]):
    self._clients, self.seconds = clients, []

  def exchange(self, blobs: dict[str, bytes], timeout: float) -> dict[str, bytes]:
    """Asks one client after another."""
    del timeout
    answers = {}
    for name, blob in blobs.items():
      began = time.perf_counter()
      answers[name] = self._clients[name](blob)
      self.seconds.append(time.perf_counter() - began)
    return answers

  def connected(self) -> frozenset[str]:
    """Returns all clients."""
    return frozenset(self._clients)

  def stopped(self) -> bool:
    """Returns that the job goes on."""
    return False


def answers(folder: pathlib.Path, config: Config, rounds: int) -> np.ndarray:
  """Returns the seconds of one client's answers in a job without the engine."""
  kit = Kit.open(folder / 'kits' / 'server', 'server')
  run = driving.begin(config, kit, folder / 'direct', None, False)
  expected = Expected.of(get_ready(job.looped(config), None, {}).parts.data)
  payload = job.write(kit.sign, job.Job(run.manifest['run_id'], config, expected, kit.clients))
  work = folder / 'direct' / 'work'
  work.mkdir()
  place = dict.fromkeys(('data', 'data_dir', 'pin', 'require')) | {'allow': [], 'repeatable': False}
  clients = {}
  for name in kit.clients:
    mine = work / name
    mine.mkdir()
    Kit.open(folder / 'kits' / name, 'client').taken.unlink(missing_ok=True)  # another run
    place |= {'kit': str(folder / 'kits' / name), 'work': str(mine)}
    clients[name] = answering.open({**place, 'outcome': str(mine / 'outcome.json')}, payload)
  link = Direct(clients)
  at = {key: str(path) for key, path in driving.Place.within(work)._asdict().items()}
  serving.serve({'kit': str(kit.path), 'run': str(run.path), 'data_dir': None, **at}, link)
  count = len(clients)
  return np.array(link.seconds[(1 + _WARM) * count : (1 + rounds) * count])


def bare(kits: pathlib.Path, up: int, down: int, repeats: int = 30) -> np.ndarray:
  """Returns the seconds of so many bytes there and back over one mutual-TLS connection."""
  server, client = kits / 'server' / 'startup', kits / 'c0' / 'startup'
  here = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=server / 'rootCA.pem')
  here.verify_mode = ssl.CERT_REQUIRED
  here.load_cert_chain(server / 'server.crt', server / 'server.key')
  there = ssl.create_default_context(cafile=client / 'rootCA.pem')
  there.load_cert_chain(client / 'client.crt', client / 'client.key')
  listening = socket.create_server(('localhost', 0))

  def answer() -> None:
    with there.wrap_socket(
      socket.create_connection(listening.getsockname()), server_hostname='localhost'
    ) as mine:
      for _ in range(repeats):
        received(mine, down)
        mine.sendall(bytes(up))

  thread = threading.Thread(target=answer)
  thread.start()
  times = []
  with listening, here.wrap_socket(listening.accept()[0], server_side=True) as mine:
    for _ in range(repeats):
      began = time.perf_counter()
      mine.sendall(bytes(down))
      received(mine, up)
      times.append(time.perf_counter() - began)
  thread.join()
  return np.array(times)


def received(connection: ssl.SSLSocket, size: int) -> None:
  """Reads so many bytes."""
  while size:
    size -= len(connection.recv(min(size, 1 << 16)) or b'?' * size)


def main() -> None:
  """Measures and prints one line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--clients', type=int, default=3)
  parser.add_argument('--rounds', type=int, default=30)
  parser.add_argument('--set', action='append', default=[], help='override of the configuration')
  args = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  os.environ['JAX_PLATFORMS'] = 'cpu'
  load = os.getloadavg()[0]
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name).resolve()
    path = folder / 'benchmark.toml'
    path.write_text(TEXT.format(clients=args.clients, rounds=args.rounds))
    config = load_config(path, args.set)
    path.write_text(job.to_toml(config))
    found = deployed(folder, path, args.clients)
    client = float(np.median(answers(folder, config, args.rounds)))
    sizes = found['bytes_up'] // args.clients, found['bytes_down'] // args.clients
    exchange = args.clients * float(np.median(bare(folder / 'kits', *sizes)))
    ready = get_ready(config, None, {})
    (simulated,) = measure.in_turn({'': (ready.sim, ready.parts.params)}, 10).values()
  round, cores = float(np.median(found['rounds'])), os.cpu_count() or 1
  clients = client * math.ceil(args.clients / cores)
  server = float(np.median(found['rounds'] - found['exchanges']))
  said = {
    'clients': args.clients,
    'params': sum(x.size for x in jax.tree.leaves(ready.parts.params)),
    'round': measure.spread(found['rounds']),
    'simulation': measure.spread(simulated),
    'beside_s': round_to(found['wall_s'] - round),
    'compute': {
      'client_s': round_to(client),
      'clients_s': round_to(clients),
      'server_s': round_to(server),
    },
    'exchange_s': round_to(exchange),
    'engine_s': round_to(round - clients - server - exchange),
    'bytes_up': found['bytes_up'],
    'bytes_down': found['bytes_down'],
    'start_s': round_to(found['start_s']),
    'accuracy': round_to(found['accuracy']),
    'memory': found['memory'],
    'processes': found['processes'],
    'cores': cores,
    'load_before': load,
  }
  print(json.dumps(said))


def round_to(value: float) -> float:
  """Returns seconds rounded to 0.1 ms."""
  return round(value, 4)


if __name__ == '__main__':
  main()
