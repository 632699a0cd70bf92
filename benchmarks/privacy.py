"""What does privacy cost? The clip and the noise in a round, and epsilon ahead of a run.

python -m benchmarks.privacy [--rounds 8]

The first line: W1 without and with client-level privacy (the layers of W2), in turn in one process;
`overhead` is the ratio of the medians less one. The others: seconds to compute epsilon after every
round of a run, once, before it begins; the loop then reads it from a table.
"""

import argparse
import json
import time

import jax
import numpy as np

from benchmarks import measure, works
from fedjax_mem import account
from fedjax_mem.account import poisson
from fedjax_mem.core import Mechanism, Sampling
from fedjax_mem.engine import simulate
from fedjax_mem.experiment import devices


def rounds(count: int, data_dir: str | None) -> None:
  """Measures W1 and the same with clip and noise, in turn."""
  plain = works.WORKS['W1']
  runs = {}
  for name, work in (('plain', plain), ('private', works.WORKS['W2'])):
    data, model, params = works.parts(work, data_dir)
    sim = simulate(
      works.layers(work, model),
      params,
      data.population(),
      max_rounds=1,
      transforms=(data.preprocess,),
    )
    runs[name] = [sim, sim.compile(sim.init(params)), []]
  for number in range(count + 1):
    for run in runs.values():
      began = time.perf_counter()
      run[1], _ = run[0].run(run[1], 1)
      jax.block_until_ready(run[1])
      if number:  # the first is to warm up
        run[2].append(time.perf_counter() - began)
  without, with_ = (np.array(run[2]) for run in runs.values())
  print(
    json.dumps(
      {
        'what': 'round',
        'plain': measure.spread(without),
        'private': measure.spread(with_),
        'overhead': round(float(np.median(with_) / np.median(without)) - 1, 3),
        'overhead_of_paired_rounds': round(float(np.median(with_ / without)) - 1, 3),
      }
    )
  )


def trajectories() -> None:
  """Measures epsilon after every round of runs of several lengths."""
  for count in (300, 3_000, 30_000):
    delta, expected, population = 1e-5, 100, 10_000
    rows = poisson.capacity(population, expected, count, delta, epsilon=100.0)
    sampling = Sampling('poisson', population, expected, rows)
    for accountant in ('rdp', 'pld'):
      began = time.perf_counter()
      path = account.trajectory(
        sampling, Mechanism('gaussian', 1.0), count, delta, accountant=accountant
      )
      print(
        json.dumps(
          {
            'what': 'epsilon after every round',
            'rounds': count,
            'accountant': path.accountant,
            'seconds': round(time.perf_counter() - began, 2),
            'epsilon': round(float(path.epsilon[-1]), 4),
          }
        )
      )


def main() -> None:
  """Measures the rounds, then the accounting."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=8)
  parser.add_argument('--data-dir')
  args = parser.parse_args()
  devices.prepare('auto')
  rounds(args.rounds, args.data_dir)
  trajectories()


if __name__ == '__main__':
  main()
