"""How does the time of a round grow? Against cohort, population, chunk and devices.

python -m benchmarks.scaling [--what cohort population chunk devices] [--out scaling.png]

Each point is a process of its own (`benchmarks.rounds`), so that memory and devices are its own. A
JSON line a point, and a plot. The cohort should cost time in proportion, the population nothing.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

import matplotlib
import numpy as np

matplotlib.use('Agg')
from matplotlib import pyplot as plt

# W3 with its clients one by one (no pooling) shows what a client costs; W1 shows chunks and devices
# for a model that is bound by arithmetic.
SWEEPS: dict[str, tuple[str, list[tuple[float, list[str]]]]] = {
  'cohort': (
    'clients of a round',
    [
      (c, ['--work', 'W3', '--no-pool', '--cohort', str(c)])
      for c in (50, 100, 200, 500, 1000, 2000, 5000)
    ],
  ),
  'population': (
    'clients of the population',
    [
      (n, ['--work', 'W3', '--no-pool', '--cohort', '100', '--population', str(n)])
      for n in (100, 1_000, 10_000, 100_000, 1_000_000)
    ],
  ),
  'chunk': (
    'clients side by side on a device',
    [
      (k, ['--work', 'W3', '--no-pool', '--execution', f'chunk:{k}'])
      for k in (1, 5, 10, 25, 50, 125, 250)
    ],
  ),
  'devices': (
    'host devices',
    [(d, ['--work', 'W1', '--rounds', '3', '--devices', str(d)]) for d in (1, 2)],
  ),
}


def point(arguments: list[str]) -> dict[str, Any]:
  """Returns what `benchmarks.rounds` prints."""
  command = [sys.executable, '-m', 'benchmarks.rounds', '--rounds', '60', *arguments]
  return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
  """Measures the sweeps, prints their points and draws them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--what', nargs='+', choices=sorted(SWEEPS), default=sorted(SWEEPS))
  parser.add_argument('--out', default='scaling.png')
  args = parser.parse_args()
  figure, axes = plt.subplots(
    1, len(args.what), figsize=(4.2 * len(args.what), 3.6), squeeze=False, layout='constrained'
  )
  for ax, what in zip(axes[0], args.what, strict=True):
    label, points = SWEEPS[what]
    rows = []
    for value, arguments in points:
      facts = point(arguments)
      rows.append((value, facts['median_s'], facts['p10_s'], facts['p90_s']))
      print(json.dumps({'what': what, 'value': value, **facts}), flush=True)
    x, middle, low, high = np.array(rows, float).T
    ax.errorbar(x, middle, [middle - low, high - middle], marker='o', capsize=3)
    if what == 'cohort':
      ax.plot(x, middle[-1] * x / x[-1], '--', color='grey', label='in proportion')
      ax.legend(frameon=False)
    ax.set(xlabel=label, ylabel='seconds a round', xscale='log', yscale='log', title=what)
    ax.grid(alpha=0.3)
  figure.savefig(args.out, dpi=130)
  print(f'plot: {args.out}', file=sys.stderr)


if __name__ == '__main__':
  main()
