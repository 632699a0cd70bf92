"""How fast is a round? One JSON line for a work.

python -m benchmarks.rounds --work W1 [--execution loop|vmap|chunk:K] [--cohort C] [--population N]

Segments of rounds are timed, fenced, without compilation or evaluation, as a run does them: a
segment lasts about half a second, or one round. `mfu` is the model's
operations a second over the machine's best matrix product in the same process. `accuracy` is a
check that the work is the same for everyone: a fast wrong run fails it.
"""

import argparse
import dataclasses
import json
import time

import jax
import numpy as np

from benchmarks import measure, works
from fedjax_mem.engine import Execution, describe, evaluator, simulate
from fedjax_mem.experiment import devices


def execution(text: str, count: int | str) -> Execution:
  """Returns the execution that 'auto', 'loop', 'vmap' or 'chunk:K' names."""
  mode, _, chunk = text.partition(':')
  return Execution(mode=mode, chunk=int(chunk) if chunk else None, devices=count)


def main() -> None:
  """Measures one work and prints its line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--work', choices=sorted(works.WORKS), default='W1')
  parser.add_argument('--execution', default='auto')
  parser.add_argument('--devices', default='auto', help='a number, or auto: one a core')
  parser.add_argument('--cohort', type=int, help='clients of a round, if not those of the work')
  parser.add_argument('--population', type=int, help='clients, if not those of the work')
  parser.add_argument('--rounds', type=int, default=10, help='rounds that are timed')
  parser.add_argument('--data-dir')
  args = parser.parse_args()
  began = time.perf_counter()
  count = args.devices if args.devices == 'auto' else int(args.devices)
  devices.prepare(count)
  work = works.WORKS[args.work]
  work = dataclasses.replace(
    work,
    cohort=args.cohort or work.cohort,
    num_clients=args.population or work.num_clients,
  )
  data, model, params = works.parts(work, args.data_dir)
  sim = simulate(
    works.layers(work, model),
    params,
    data.population(),
    execution=execution(args.execution, count),
    max_rounds=64,
    transforms=(data.preprocess,),
  )
  state = sim.init(params)
  before = time.perf_counter()
  state = jax.block_until_ready(sim.compile(state))
  compile_s = time.perf_counter() - before
  state, _ = sim.run(state, 1)
  first_s = time.perf_counter() - began
  before = time.perf_counter()
  state, _ = sim.run(state, 1)
  segment = int(np.clip(0.5 / (time.perf_counter() - before), 1, min(64, args.rounds)))
  times = []
  for _ in range(-(-args.rounds // segment)):
    before = time.perf_counter()
    state, _ = sim.run(state, segment)
    jax.block_until_ready(state)
    times.append((time.perf_counter() - before) / segment)
  test = evaluator(
    lambda p, batch: model.metrics(p, data.preprocess(batch)),
    data.test,
    batch_size=500,
    mesh=sim.setting.layout.mesh,
  )
  rss, median = measure.peak_rss_mb(), float(np.median(times))
  peak = measure.gemm_peak_gflops()
  print(
    json.dumps(
      {
        'work': args.work,
        'cohort': work.cohort,
        'population': work.num_clients,
        'execution': describe(sim.setting.layout),
        'rounds_per_s': round(1 / median, 4),
        **measure.spread(np.array(times)),
        'samples_per_s': round(work.cohort * work.epochs * work.examples / median),
        'compile_s': round(compile_s, 2),
        'first_round_s': round(first_s, 2),
        'model_gflops': round(work.gflop / median, 1),
        'gemm_peak_gflops': round(peak, 1),
        'mfu': round(work.gflop / median / peak, 3),
        'peak_rss_mb': round(rss),
        'segment': segment,
        'rounds_done': int(state.round),
        'accuracy': round(test(state.params)['accuracy'], 4),
        'jax': jax.__version__,
      }
    )
  )


if __name__ == '__main__':
  main()
