"""How fast is a round? One JSON line for a work.

python -m benchmarks.rounds --work W1 [--execution loop|vmap|chunk:K] [--cohort C] [--population N]
    [--against torch-loop|fedjax|pfl [--peer-python PYTHON] [--peer-processes P]
    [--peer-threads T] [--peer-devices D]]

Segments of rounds are timed, fenced, without compilation or evaluation, as a run does them: a
segment lasts about half a second, or one round. `mfu` is the model's
operations a second over the machine's best matrix product in the same process. `accuracy` is a
check that the work is the same for everyone: a fast wrong run fails it.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from benchmarks import measure, works
from fedjax_mem.core import State
from fedjax_mem.engine import Execution, Simulation, describe, evaluator, simulate
from fedjax_mem.experiment import devices


def execution(text: str, count: int | str, pool: bool) -> Execution:
  """Returns the execution that 'auto', 'loop', 'vmap' or 'chunk:K' names."""
  mode, _, chunk = text.partition(':')
  return Execution(mode=mode, chunk=int(chunk) if chunk else None, devices=count, pool=pool)


# The module of each peer, and the options it has; those not given are the best seen for the work.
PEERS = {
  'torch-loop': ('torch_loop', ('processes', 'threads')),
  'fedjax': ('fedjax_runner', ('devices',)),
  'pfl': ('pfl_runner', ('processes', 'threads')),
}


class Peer:
  """Another simulator in its own process, asked for rounds in turn with ours."""

  def __init__(self, work: works.Work, data: Any, args: argparse.Namespace):
    self._folder = tempfile.TemporaryDirectory()
    folder = pathlib.Path(self._folder.name)
    (folder / 'work.json').write_text(json.dumps(dataclasses.asdict(work)))
    for prefix, arrays in (('', data.arrays), ('test_', data.test)):
      for name, x in arrays.items():
        np.save(folder / f'{prefix}{name}.npy', x)
    self._module, known = PEERS[args.against]
    given = {name: getattr(args, f'peer_{name}') for name in known}
    self._process = subprocess.Popen(
      [args.peer_python, '-m', f'benchmarks.peers.{self._module}', str(folder)]
      + [f'--{name}={value}' for name, value in given.items() if value is not None],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=pathlib.Path(__file__).parents[1],
    )
    self.versions = ', '.join(f'{name} {version}' for name, version in self._read().items())
    self.seconds: list[float] = []

  def _read(self) -> dict[str, Any]:
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(
        f'the peer ended: has --peer-python what benchmarks/peers/{self._module}.py asks for?'
      )
    return json.loads(line)

  def ask(self, line: str) -> dict[str, Any]:
    """Sends a line and returns the answer."""
    self._process.stdin.write(f'{line}\n')
    self._process.stdin.flush()
    return self._read()

  def run(self, rounds: int) -> None:
    """Runs rounds and keeps their seconds."""
    self.seconds += self.ask(str(rounds))['seconds']

  def facts(self, ours: float) -> dict[str, Any]:
    """Returns the peer's figures and the ratio of the medians, > 1 where we are faster."""
    median = float(np.median(self.seconds))
    facts = {
      'peer': self.versions,
      'peer_rounds_per_s': round(1 / median, 4),
      'peer_median_s': round(median, 4),
      'peer_accuracy': round(self.ask('accuracy')['accuracy'], 4),
      'ratio': round(median / ours, 2),
    }
    self._process.stdin.close()
    self._process.wait()
    return facts


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--work', choices=sorted(works.WORKS), default='W1')
  parser.add_argument('--execution', default='auto')
  parser.add_argument('--devices', default='auto', help='a number, or auto: one a core')
  parser.add_argument('--no-pool', action='store_true', help='no sum over all examples at once')
  parser.add_argument('--cohort', type=int, help='clients of a round, if not those of the work')
  parser.add_argument('--epochs', type=int, help='local epochs, if not those of the work')
  parser.add_argument('--population', type=int, help='clients, if not those of the work')
  parser.add_argument('--rounds', type=int, default=10, help='rounds that are timed')
  parser.add_argument('--data-dir')
  parser.add_argument('--against', choices=list(PEERS))
  parser.add_argument('--peer-python', default=sys.executable, help="the peer's interpreter")
  parser.add_argument('--peer-processes', type=int, help='of torch-loop and pfl')
  parser.add_argument('--peer-threads', type=int, help='of each process of torch-loop and pfl')
  parser.add_argument('--peer-devices', type=int, help='of fedjax: 1 is jit, more is pmap')
  return parser.parse_args()


def _timed(sim: Simulation, state: State, rounds: int, peer: Peer | None) -> tuple[State, list]:
  """Returns the state and the seconds of a round, segment after segment, in turn with the peer."""
  before = time.perf_counter()
  state, _ = sim.run(state, 1)
  segment = int(np.clip(0.5 / (time.perf_counter() - before), 1, min(64, rounds)))
  times = []
  if peer:
    peer.run(1)  # warm up, as we did
    peer.seconds.clear()
  for _ in range(-(-rounds // segment)):
    if peer:
      peer.run(segment)
    before = time.perf_counter()
    state, _ = sim.run(state, segment)
    jax.block_until_ready(state)
    times.append((time.perf_counter() - before) / segment)
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
    'samples_per_s': round(work.cohort * work.epochs * work.examples / median),
    'model_gflop_a_round': round(work.gflop, 1),
    'model_gflops': round(work.gflop / median, 1),
    'gemm_peak_gflops': round(peak, 1),
    'mfu': round(work.gflop / median / peak, 3),
    'peak_rss_mb': round(rss),
  }


def main() -> None:
  """Measures one work and prints its line."""
  args = _arguments()
  began = time.perf_counter()
  count = args.devices if args.devices == 'auto' else int(args.devices)
  devices.prepare(count)
  work = works.WORKS[args.work]
  work = dataclasses.replace(
    work,
    cohort=args.cohort or work.cohort,
    num_clients=args.population or work.num_clients,
    epochs=args.epochs or work.epochs,
  )
  data, model, params = works.parts(work, args.data_dir)
  sim = simulate(
    works.layers(work, model),
    params,
    data.population(),
    execution=execution(args.execution, count, not args.no_pool),
    max_rounds=64,
    transforms=(data.preprocess,),
  )
  state = sim.init(params)
  before = time.perf_counter()
  state = jax.block_until_ready(sim.compile(state))
  compile_s = time.perf_counter() - before
  state, _ = sim.run(state, 1)
  first_s = time.perf_counter() - began
  peer = Peer(work, data, args) if args.against else None
  state, times = _timed(sim, state, args.rounds, peer)
  score = lambda p, batch: model.metrics(p, data.preprocess(batch))
  test = evaluator(score, data.test, batch_size=500, mesh=sim.setting.layout.mesh)
  facts = {
    'work': args.work,
    'execution': describe(sim.setting.layout),
    **_facts(work, times),
    'compile_s': round(compile_s, 2),
    'first_round_s': round(first_s, 2),
    'rounds_done': int(state.round),
    'accuracy': round(test(state.params)['accuracy'], 4),
    'jax': jax.__version__,
    **(peer.facts(float(np.median(times))) if peer else {}),
  }
  print(json.dumps(facts))


if __name__ == '__main__':
  main()
