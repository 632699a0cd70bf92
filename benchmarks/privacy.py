"""What does privacy cost? The clip and the noise in a round, and epsilon ahead of a run.

python -m benchmarks.privacy [--rounds 8]

The first line: W1 without and with client-level privacy (the layers of W2), in turn in one process;
`overhead` is the ratio of the medians less one. The others: seconds to compute epsilon after every
round of a run, once, before it begins; the loop then reads it from a table.
"""

import argparse
import json
import time

from benchmarks import measure, works
from fedjax_mem import account
from fedjax_mem.account import poisson
from fedjax_mem.core import Draws
from fedjax_mem.mechanisms import Gaussian
from fedjax_mem.runner import devices


def rounds(count: int, data_dir: str | None) -> None:
  """Measures W1 and the same with clip and noise, in turn."""
  runs = {
    'plain': works.simulation(works.WORKS['W1'], data_dir),
    'private': works.simulation(works.WORKS['W2'], data_dir),
  }
  times = measure.in_turn(runs, count)
  plain = measure.spread(times['plain'])
  private = measure.overhead(times['plain'], times['private'])
  print(json.dumps({'what': 'round', 'plain': plain, 'private': private}))


def trajectories() -> None:
  """Measures epsilon after every round of runs of several lengths."""
  for count in (300, 3_000, 30_000):
    delta, expected, population = 1e-5, 100, 10_000
    rows = poisson.capacity(population, expected, count, delta, epsilon=100.0)
    sampling = Draws('poisson', population, expected, rows)
    for accountant in ('rdp', 'pld'):
      began = time.perf_counter()
      path = account.trajectory(sampling, Gaussian(1.0), count, delta, accountant=accountant)
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
