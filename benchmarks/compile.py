"""Does compiling grow with what is simulated? Seconds and program size against clients and rounds.

python -m benchmarks.compile [--work W1]

One program serves any number of rounds and clients, so all of them should cost the same. Each point
is a process of its own, without the compilation cache. JSON lines.
"""

import argparse
import json
import os
import subprocess
import sys

POINTS = (
  {'cohort': 10},
  {'cohort': 50},
  {'cohort': 200},
  {'cohort': 1000},
  {'max_rounds': 1},
  {'max_rounds': 64},
  {'max_rounds': 256},
  {'execution': 'chunk:2'},
  {'execution': 'chunk:5'},
  {'execution': 'chunk:25'},
)


def one(point: dict) -> None:
  """Compiles one program in this process and prints its line."""
  import dataclasses
  import time

  import jax

  from benchmarks import measure, works
  from benchmarks.rounds import execution
  from fedjax_mem.engine import describe, simulate
  from fedjax_mem.runner import devices

  devices.prepare('auto')
  work = works.WORKS[point['work']]
  work = dataclasses.replace(work, cohort=point.get('cohort', work.cohort))
  data, model, params = works.parts(work)
  sim = simulate(
    works.layers(work, model),
    params,
    data.population(),
    execution=execution(point.get('execution', 'auto'), 'auto', pool=False),
    max_rounds=point.get('max_rounds', 64),
    transforms=(data.preprocess,),
  )
  began = time.perf_counter()
  lowered = sim.traced().lower()
  traced = time.perf_counter()
  compiled = lowered.compile()
  done = time.perf_counter()
  memory = compiled.memory_analysis()
  print(
    json.dumps(
      {
        **point,
        'layout': describe(sim.setting.layout),
        'trace_s': round(traced - began, 2),
        'compile_s': round(done - traced, 2),
        'program_lines': lowered.as_text().count('\n'),
        'temporary_mb': round(memory.temp_size_in_bytes / 1e6, 1),
        'peak_rss_mb': round(measure.peak_rss_mb()),
        'jax': jax.__version__,
      }
    ),
    flush=True,
  )


def main() -> None:
  """Compiles every point in a process of its own."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--work', default='W1')
  parser.add_argument('--point', help='one point as JSON, in this process')
  args = parser.parse_args()
  if args.point:
    one(json.loads(args.point))
    return
  quiet = {**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': '0'}
  for point in POINTS:
    text = json.dumps({'work': args.work, **point})
    command = [sys.executable, '-m', 'benchmarks.compile', '--point', text]
    subprocess.run(command, check=True, env=quiet)


if __name__ == '__main__':
  main()
