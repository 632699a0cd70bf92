"""What does privacy cost? The clip and the noise in a round, and epsilon ahead of a run.

python -m benchmarks.privacy [--rounds 8] [--only rounds|trajectories|bounds]

The first line: W1 without and with client-level privacy (the layers of W2), in turn in one process;
`overhead` is the ratio of the medians less one. Then the seconds to compute epsilon after every
round of a run, once, before it begins; the loop then reads it from a table. Then, for settings
that span users' work: epsilon by each accountant (null: it has no event), the one that 'auto'
states, and the seconds of that and of epsilon after every round, with nothing kept from before.
"""

import argparse
import json
import time
from typing import Any, NamedTuple

from rich.progress import track

from benchmarks import measure, works
from fedjax_mem import account
from fedjax_mem.account import curves, poisson
from fedjax_mem.core import Bound, Draws, IncompatibleStages, Mechanism
from fedjax_mem.mechanisms import DiscreteGaussian, Gaussian, Laplace, Matrix, Skellam, Tree
from fedjax_mem.runner import devices


class Setting(NamedTuple):
  """A run to account for."""

  draws: Draws | None
  mechanism: Mechanism
  rounds: int
  delta: float
  how: dict[str, Any]


def _poisson(population: int, expected: float, rounds: int, delta: float) -> Draws:
  rows = poisson.capacity(population, expected, rounds, delta)
  return Draws('poisson', population, expected, rows)


_TURNS = Draws('cyclic', 1000, 50, 50, 20)
_GRID = {'bound': Bound(l2=1000.0)}
_LOCAL = {'trust': 'local', 'unit': 'example'}
SETTINGS = {
  'poisson, rate 0.001': Setting(
    _poisson(1_000_000, 1000, 2000, 1e-7), Gaussian(1.0), 2000, 1e-7, {}
  ),
  'poisson, rate 0.5': Setting(_poisson(1000, 500, 50, 1e-5), Gaussian(5.0), 50, 1e-5, {}),
  'poisson, replace one': Setting(
    _poisson(3383, 120, 100, 1e-5), Gaussian(1.2), 100, 1e-5, {'adjacency': 'replace_one'}
  ),
  'without replacement': Setting(
    Draws('without_replacement', 1000, 50, 50), Gaussian(3.0), 100, 1e-5, {}
  ),
  'no amplification': Setting(_TURNS, Gaussian(2.0), 100, 1e-5, {}),
  'laplace': Setting(_poisson(1000, 50, 50, 1e-5), Laplace(3.0), 50, 1e-5, {}),
  'discrete gaussian': Setting(_TURNS, DiscreteGaussian(2.0), 100, 1e-5, _GRID),
  'skellam in shares': Setting(
    Draws('without_replacement', 1000, 50, 50),
    Skellam(5.0, shares=40, dimension=100_000),
    10,
    1e-5,
    _GRID,
  ),
  'matrix': Setting(_TURNS, Matrix(2.0, (1.0,) * 20 + (1.4,) * 20, 20), 40, 1e-5, {}),
  'tree': Setting(_TURNS, Tree(2.0, restart=20), 40, 1e-5, {}),
  'dp-sgd on a client': Setting(Draws('poisson', 200, 10, 200), Gaussian(1.5), 500, 1e-3, _LOCAL),
}


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


def _stated(x: Setting, accountant: str) -> float | None:
  how = {'accountant': accountant, **x.how}
  try:
    return round(account.epsilon(x.draws, x.mechanism, x.rounds, x.delta, **how).epsilon, 4)
  except IncompatibleStages:
    return None


def bounds() -> list[dict[str, Any]]:
  """Prints, and returns, a row for each setting: RDP, PLD, what is stated, and its seconds."""
  account.epsilon(None, Gaussian(1.0), 1, 1e-5)  # imports what is imported on first use
  rows = []
  for name in track(SETTINGS, 'accounting', transient=True):
    x = SETTINGS[name]
    curves.forget()
    began = time.perf_counter()
    made = account.claim(x.draws, x.mechanism, rounds=x.rounds, delta=x.delta, **x.how)
    auto = made.guarantee(x.rounds, x.delta)
    seconds = time.perf_counter() - began
    made.trajectory(x.rounds, x.delta)
    after = time.perf_counter() - began
    row = {'what': 'bounds', 'setting': name, 'rdp': _stated(x, 'rdp'), 'pld': _stated(x, 'pld')}
    row |= {'stated': round(auto.epsilon, 4), 'by': auto.accountant, 'seconds': round(seconds, 2)}
    rows.append({**row, 'after every round': round(after, 2)})
    print(json.dumps(rows[-1]))
  return rows


def main() -> None:
  """Measures the rounds, then the accounting."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=8)
  parser.add_argument('--data-dir')
  parser.add_argument('--only', choices=('rounds', 'trajectories', 'bounds'))
  args = parser.parse_args()
  if args.only in (None, 'rounds'):
    devices.prepare('auto')
    rounds(args.rounds, args.data_dir)
  if args.only in (None, 'trajectories'):
    trajectories()
  if args.only in (None, 'bounds'):
    bounds()


if __name__ == '__main__':
  main()
