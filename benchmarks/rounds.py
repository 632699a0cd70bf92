"""How fast is a round? One JSON line for a work.

python -m benchmarks.rounds --work W1 [--execution loop|vmap|chunk:K] [--cohort C] [--population N]
    [--against torch-loop|fedjax|pfl [--peer-python PYTHON] [--peer-processes P]
    [--peer-threads T] [--peer-devices D] | --against-commit SHA [--commit-python PYTHON]]

Segments of rounds are timed, fenced, without compilation or evaluation, as a run does them: a
segment lasts about half a second, or one round. `mfu` is the model's
operations a second over the machine's best matrix product in the same process. `accuracy` is a
check that the work is the same for everyone: a fast wrong run fails it.

With `--against-commit` this working tree and another commit are both served in processes of their
own (`benchmarks.serve`), in turn. The commit lies in a worktree of its own in the cache, where it
is found again, and runs in a new environment with what its package asks for, or by PYTHON.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks import measure, serve, works
from benchmarks.serve import execution as execution  # benchmarks.compile takes it here
from fedjax_mem.core import State
from fedjax_mem.engine import Simulation, describe
from fedjax_mem.runner.devices import cache_folder

ROOT = pathlib.Path(__file__).resolve().parents[1]

# The module of each peer, and the options it has; those not given are the best seen for the work.
PEERS = {
  'torch-loop': ('torch_loop', ('processes', 'threads')),
  'opacus': ('opacus_runner', ('processes', 'threads')),
  'fedjax': ('fedjax_runner', ('devices',)),
  'pfl': ('pfl_runner', ('processes', 'threads')),
}


class Peer:
  """A simulator in its own process, asked for rounds in turn with others.

  Attributes:
    versions: what it says that it runs, name -> text.
    seconds: of each round run so far.
  """

  def __init__(self, command: list[str], root: pathlib.Path, hint: str, **variables: str):
    """Starts `command` in the folder `root`; `hint` is said if it ends before its time."""
    self._hint = hint
    self._process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=root,
      env={**os.environ, **variables},
    )
    self.versions: dict[str, str] = self._read()
    self.seconds: list[float] = []

  @property
  def pid(self) -> int:
    """Number of its process."""
    return self._process.pid

  @property
  def name(self) -> str:
    """What it says that it runs, in one line."""
    return ', '.join(f'{name} {version}' for name, version in self.versions.items())

  def _read(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f'{" ".join(self._process.args)} ended: {self._hint}')
    return json.loads(line)

  def ask(self, line: str) -> dict[str, Any]:
    """Sends a line and returns the answer."""
    self._process.stdin.write(f'{line}\n')
    self._process.stdin.flush()
    return self._read()

  def run(self, rounds: int) -> float:
    """Runs rounds, keeps their seconds and returns the median of them."""
    seconds = self.ask(str(rounds))['seconds']
    self.seconds += seconds
    return float(np.median(seconds))

  def score(self, prefix: str = '') -> dict[str, float]:
    """Returns accuracy and, from who tells it, loss on the test set, after the rounds so far."""
    return {f'{prefix}{name}': round(x, 4) for name, x in self.ask('accuracy').items()}

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()

  def facts(self, ours: float) -> dict[str, Any]:
    """Returns the peer's figures and the ratio of the medians, > 1 where we are faster."""
    median = float(np.median(self.seconds))
    return {
      'peer': self.name,
      'peer_rounds_per_s': round(1 / median, 4),
      'peer_median_s': round(median, 4),
      **self.score('peer_'),
      'ratio': round(median / ours, 3),
    }


def write(folder: pathlib.Path, work: works.Work, data: Any) -> None:
  """Writes what a peer is given: see `benchmarks/peers/__init__.py`."""
  (folder / 'work.json').write_text(json.dumps(work.written()))
  for prefix, arrays in (('', data.arrays), ('test_', data.test)):
    for name, x in arrays.items():
      np.save(folder / f'{prefix}{name}.npy', x)


def _simulator(args: argparse.Namespace, folder: str) -> Peer:
  """Returns the simulator of `--against`."""
  module, known = PEERS[args.against]
  given = {name: getattr(args, f'peer_{name}') for name in known}
  return Peer(
    [args.peer_python, '-m', f'benchmarks.peers.{module}', folder]
    + [f'--{name}={value}' for name, value in given.items() if value is not None],
    ROOT,
    f'has --peer-python what benchmarks/peers/{module}.py asks for?',
  )


def _served(
  args: argparse.Namespace, folder: str, root: pathlib.Path, commit: str, python: str
) -> Peer:
  """Returns the package in the folder `root`, a commit's, served by its own `benchmarks.serve`."""
  peer = Peer(
    [python, '-m', 'benchmarks.serve', folder]
    # Those of the protocol, and only if they are given: an earlier commit may lack later ones.
    + [f'--{name}={x}' for name in ('execution', 'devices') if (x := getattr(args, name)) != 'auto']
    + ['--no-pool'] * args.no_pool,
    root,
    f'has {python} what the package in {root} asks for?',
    PYTHONPATH=str(root),
  )
  if (used := peer.versions.pop('root')) != str(root):
    raise SystemExit(f'the package that is run must be the one in {root}, got the one in {used}.')
  peer.versions = {'commit': commit, **peer.versions}
  return peer


def _git(*words: str) -> str | None:
  """Returns what git prints, None where it fails."""
  done = subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True)
  return done.stdout.strip() if done.returncode == 0 else None


def checkout(name: str) -> tuple[str, pathlib.Path]:
  """Returns a commit's full name and its worktree, made unless it is there, whole and unchanged."""
  commit = _git('rev-parse', '--verify', '--quiet', f'{name}^{{commit}}')
  if commit is None:
    raise SystemExit(
      f'--against-commit must be a commit of the repository in {ROOT}, got {name!r}.'
    )
  if _git('cat-file', '-e', f'{commit}:benchmarks/serve.py') is None:
    raise SystemExit(
      f'--against-commit must be a commit with benchmarks/serve.py, got {name!r}, which is from '
      'before it: name a later one.'
    )
  tree = cache_folder().resolve() / 'commits' / commit / 'tree'
  head = _git('-C', str(tree), 'rev-parse', 'HEAD')
  if head != commit or _git('-C', str(tree), 'status', '--porcelain') != '':
    shutil.rmtree(tree, ignore_errors=True)
    # By force: git may still know a worktree of that name, whose folder somebody has removed.
    if _git('worktree', 'add', '--force', '--detach', str(tree), commit) is None:
      raise SystemExit(f'git could not make a worktree of {commit} in {tree}.')
  return commit, tree


def interpreter(name: str) -> str:
  """Returns the path of an interpreter, to be started from another folder."""
  found = shutil.which(name)
  if found is None:
    raise SystemExit(f'--commit-python must be an interpreter, got {name!r}.')
  return os.path.abspath(found)  # links stay: an environment is known by the link in it


def environment(tree: pathlib.Path) -> str:
  """Returns the interpreter of the environment beside a worktree, made unless it is complete."""
  home = tree.with_name('environment')
  python, complete = home / 'bin' / 'python', home / 'complete'
  if not complete.exists():
    print(f'installing {tree} in {home}', file=sys.stderr)
    for command in (
      [sys.executable, '-m', 'venv', '--clear', str(home)],
      [str(python), '-m', 'pip', 'install', '--quiet', str(tree)],
    ):
      # Standard output is for the line of figures.
      if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit(f'{" ".join(command)} failed: mend it, or give --commit-python.')
    complete.touch()
  return str(python)


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--work', choices=sorted(works.WORKS), default='W1')
  serve.add_options(parser)
  parser.add_argument('--cohort', type=int, help='clients of a round, if not those of the work')
  parser.add_argument('--epochs', type=int, help='local epochs, if not those of the work')
  parser.add_argument('--population', type=int, help='clients, if not those of the work')
  parser.add_argument('--rounds', type=int, default=10, help='rounds that are timed')
  parser.add_argument('--data-dir')
  against = parser.add_mutually_exclusive_group()
  against.add_argument('--against', choices=list(PEERS))
  against.add_argument('--against-commit', metavar='SHA', help='a commit with benchmarks/serve.py')
  parser.add_argument('--commit-python', help='its interpreter, if no new environment is wanted')
  parser.add_argument('--peer-python', default=sys.executable, help="the peer's interpreter")
  parser.add_argument('--peer-processes', type=int, help='of torch-loop and pfl')
  parser.add_argument('--peer-threads', type=int, help='of each process of torch-loop and pfl')
  parser.add_argument('--peer-devices', type=int, help='of fedjax: 1 is jit, more is pmap')
  return parser.parse_args()


def segment_of(seconds: float, rounds: int) -> int:
  """Returns the rounds of a segment, from the seconds of one: half a second, or one round."""
  return int(np.clip(0.5 / seconds, 1, min(serve.SEGMENT, rounds)))


def _timed(sim: Simulation, state: State, rounds: int, peer: Peer | None) -> tuple[State, list]:
  """Returns the state and the seconds of a round, segment after segment, in turn with the peer."""
  state, first = serve.timed(sim, state, 1)
  segment = segment_of(first, rounds)
  times = []
  if peer:
    peer.run(2)  # warm up, as we did
    peer.seconds.clear()
  for _ in range(-(-rounds // segment)):
    if peer:
      peer.run(segment)
    state, each = serve.timed(sim, state, segment)
    times.append(each)
  return state, times


def _facts(work: works.Work, times: list[float]) -> dict[str, Any]:
  """Returns what follows from the seconds of a round, and the limits of this process."""
  rss, median, peak = measure.peak_rss_mb(), float(np.median(times)), measure.gemm_peak_gflops()
  return {
    'cohort': work.cohort,
    'population': work.num_clients,
    'epochs': work.epochs,
    'rounds_per_s': round(1 / median, 4),
    **measure.spread(np.array(times)),
    'samples_per_s': round(work.samples / median),
    'model_gflop_a_round': round(work.gflop, 1),
    'model_gflops': round(work.gflop / median, 1),
    'gemm_peak_gflops': round(peak, 1),
    'mfu': round(work.gflop / median / peak, 3),
    'peak_rss_mb': round(rss),
  }


def _here(args: argparse.Namespace, work: works.Work, folder: str) -> dict[str, Any]:
  """Returns the figures of this process, and those of the simulator that it is measured against."""
  began = time.perf_counter()
  how = serve.prepare(args)
  data = works.load(work, args.data_dir)
  sim, model, params = serve.build(work, data, how)
  state = sim.init(params)
  before = time.perf_counter()
  state = jax.block_until_ready(sim.compile(state))
  compile_s = time.perf_counter() - before
  state, _ = sim.run(state, 1)
  first_s = time.perf_counter() - began
  peer = None
  if args.against:
    write(pathlib.Path(folder), work, data)
    peer = _simulator(args, folder)
  state, times = _timed(sim, state, args.rounds, peer)
  scored = serve.score(sim, model, data, state.params)
  facts = {
    'execution': describe(sim.setting.layout),
    **_facts(work, times),
    'compile_s': round(compile_s, 2),
    'first_round_s': round(first_s, 2),
    'rounds_done': int(state.round),
    **{name: round(x, 4) for name, x in scored.items()},
    'jax': jax.__version__,
  }
  if peer:
    facts |= peer.facts(float(np.median(times)))
    peer.close()
  return facts


def _against_commit(args: argparse.Namespace, work: works.Work, folder: str) -> dict[str, Any]:
  """Returns the figures of this working tree and of a commit, segments of both in turn."""
  commit, tree = checkout(args.against_commit)
  python = interpreter(args.commit_python) if args.commit_python else environment(tree)
  changed = ' with changes' if _git('status', '--porcelain') else ''
  write(pathlib.Path(folder), work, works.load(work, args.data_dir))
  theirs = _served(args, folder, tree, commit[:12], python)
  ours = _served(args, folder, ROOT, f'{_git("rev-parse", "HEAD")[:12]}{changed}', sys.executable)
  sides = (theirs, ours)
  for side in sides:
    side.run(1)
  first = [side.run(1) for side in sides]
  segment = segment_of(first[1], args.rounds)
  for side in sides:
    side.seconds.clear()
  pairs = []
  for number in range(-(-args.rounds // segment)):
    # They take turns at being first, so that what drifts favours neither.
    took = {side: side.run(segment) for side in sides[:: 1 if number % 2 else -1]}
    pairs.append(took[theirs] / took[ours])
  low, high = np.percentile(pairs, [10, 90])
  median = float(np.median(ours.seconds))
  facts = {
    'cohort': work.cohort,
    'population': work.num_clients,
    'epochs': work.epochs,
    'ours': ours.name,
    'rounds_per_s': round(1 / median, 4),
    **measure.spread(np.array(ours.seconds)),
    'rounds_done': 2 + len(ours.seconds),
    **ours.score(),
    **theirs.facts(median),
    'ratio_p10': round(low, 3),
    'ratio_p90': round(high, 3),
    'segments': len(pairs),
  }
  for side in sides:
    side.close()
  return facts


def main() -> None:
  """Measures one work and prints its line."""
  args = _arguments()
  work = works.WORKS[args.work]
  work = dataclasses.replace(
    work,
    cohort=args.cohort or work.cohort,
    num_clients=args.population or work.num_clients,
    epochs=args.epochs or work.epochs,
  )
  with tempfile.TemporaryDirectory() as folder:
    facts = (_against_commit if args.against_commit else _here)(args, work, folder)
  print(json.dumps({'work': args.work, **facts}))


if __name__ == '__main__':
  main()
