"""How fast are the robust rules? One JSON line a rule, number of clients and size.

    python -m benchmarks.robust [--clients 10 100 1000] [--size 100000 1000000] [--rules ...]
        [--against --peer-python PYTHON] [--repeats 5]

`median_s` is the time of the compiled rule on rows [C, D] of normal values, a fifth of the clients
taken for hostile. With `--against`, the same rule of byzfl (PyTorch, all cores) is timed on the
same rows in its own process in the same invocation, in turns: `ratio` > 1 means that ours is
faster. `same` says whether the two results agree, for the rules that are defined alike: byzfl's
median of an even number is the lower one, its Krum takes one neighbour more. What would not fit
this machine's memory is left out and says so.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from fedjax_mem.core import Context, Layer, scalar_member
from fedjax_mem.runner import devices
from fedjax_mem.stages import aggregate as rules

RULES: dict[str, Callable[[int], Layer]] = {
  'median': lambda f: rules.median(),
  'trimmed_mean': rules.trimmed_mean,
  'krum': rules.krum,
  'multi_krum': rules.multi_krum,
  'geometric_median': lambda f: rules.geometric_median(3, 0.1),
  'centered_clipping': lambda f: rules.centered_clipping(1.0),
  'nnm': rules.nnm,
  'bulyan': lambda f: rules.bulyan(f),
  'dnc': lambda f: rules.dnc(f),
  'signguard': lambda f: rules.signguard(),
  'norm_bounding': lambda f: rules.norm_bounding(1.0),
  'bucketing': lambda f: rules.bucketing(2),
}
ALIKE = ('trimmed_mean', 'geometric_median', 'centered_clipping', 'nnm')
PEER = (
  'median',
  'trimmed_mean',
  'krum',
  'multi_krum',
  'geometric_median',
  'centered_clipping',
  'nnm',
)
# Copies of the rows that are held at once: ours, and byzfl's (a sort has indices of 8 bytes).
OURS, THEIRS = 3, 6


def free_bytes() -> float:
  """Returns the memory that is available."""
  for line in pathlib.Path('/proc/meminfo').read_text().splitlines():
    if line.startswith('MemAvailable'):
      return 1024 * float(line.split()[1])
  return 8e9


class Peer:
  """byzfl in its own process."""

  def __init__(self, python: str):
    self._process = subprocess.Popen(
      [python, '-m', 'benchmarks.peers.byzfl_runner'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=pathlib.Path(__file__).parents[1],
    )
    self.facts = self._read()

  def _read(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit('the peer ended: has --peer-python what byzfl_runner.py asks for?')
    return json.loads(line)

  def ask(self, **asked: Any) -> dict[str, Any]:
    """Sends a request and returns the answer."""
    self._process.stdin.write(json.dumps(asked) + '\n')
    self._process.stdin.flush()
    return self._read()


def hostile(name: str, clients: int) -> int:
  """Returns f: a fifth of the clients, or fewer where the rule does not hold for so many."""
  return min(clients // 5, (clients - 3) // 4) if name == 'bulyan' else clients // 5


def ours(name: str, clients: int, size: int) -> Callable[[jax.Array], jax.Array]:
  """Returns the compiled rule: rows [C, D] -> value [D], or rows."""
  layer = RULES[name](hostile(name, clients))
  on = jnp.ones(clients, bool)
  cohort = jax.vmap(scalar_member)(jnp.arange(clients))
  key = jax.random.key(0)
  center = jnp.zeros(size)
  ctx = Context(key, key, jnp.int32(0), None, cohort, None, center, None)
  compute = layer.cohort.apply.compute
  return jax.jit(lambda x: compute(ctx, x, on, jnp.ones(clients))[0])


def line(name: str, x: np.ndarray, path: str, peer: Peer | None, repeats: int) -> dict[str, Any]:
  """Returns the record of one rule on the rows x [C, D], which are in the file at `path`."""
  clients, size = x.shape
  f = hostile(name, clients)
  record: dict[str, Any] = {'rule': name, 'clients': clients, 'size': size, 'f': f}
  if OURS * x.nbytes > free_bytes():
    return record | {'left_out': f'{OURS * x.nbytes / 1e9:.0f} GB do not fit'}
  run, rows = ours(name, clients, size), jnp.asarray(x)
  value = jax.block_until_ready(run(rows))
  times = measure.seconds(lambda: run(rows), repeats)
  record |= measure.spread(times)
  if peer is None or name not in PEER:
    return record
  needed = x.nbytes * ((clients - f + 2) if name == 'nnm' else THEIRS)
  if needed > free_bytes():
    return record | {'peer_left_out': f'{needed / 1e9:.0f} GB do not fit'}
  told = peer.ask(rule=name, clients=clients, size=size, f=f, repeats=repeats, path=path)
  times = np.concatenate([times, measure.seconds(lambda: run(rows), repeats)])
  middle = float(np.median(told['seconds']))
  record |= measure.spread(times)
  record |= {'peer_median_s': round(middle, 4), 'ratio': round(middle / float(np.median(times)), 2)}
  if name in ALIKE:
    start = np.asarray(value).reshape(-1)[:64]
    record['same'] = bool(np.allclose(start, told['start'], rtol=1e-3, atol=1e-4))
  return record


def main() -> None:
  """Measures the rules and prints their lines."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--clients', type=int, nargs='+', default=[10, 100, 1000])
  parser.add_argument('--size', type=int, nargs='+', default=[10**5, 10**6])
  parser.add_argument('--rules', nargs='+', choices=list(RULES), default=list(RULES))
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--against', action='store_true', help='time byzfl as well')
  parser.add_argument('--peer-python', default=sys.executable, help="byzfl's interpreter")
  args = parser.parse_args()
  devices.prepare(1)
  peer = Peer(args.peer_python) if args.against else None
  if peer:
    print(json.dumps({'peer': 'byzfl', **peer.facts}), flush=True)
  with tempfile.TemporaryDirectory() as folder:
    path = str(pathlib.Path(folder) / 'rows.npy')
    for clients in args.clients:
      for size in args.size:
        rows = np.random.default_rng(0).standard_normal((clients, size), np.float32)
        np.save(path, rows)
        for name in args.rules:
          print(json.dumps(line(name, rows, path, peer, args.repeats)), flush=True)


if __name__ == '__main__':
  main()
