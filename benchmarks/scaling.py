"""How does the time of a round grow? Against cohort, population, chunk, devices and local steps.

python -m benchmarks.scaling [--what cohort population chunk devices] [--out scaling.png]
python -m benchmarks.scaling --what w1-cohort w1-steps --out limit.png   (rounds/s and the limit)

python -m benchmarks.scaling --all [--part growth sums] [--draw]     (docs/guide/scale.md)

Each point is a process of its own (`benchmarks.rounds`), so that memory and devices are its own. A
JSON line a point, and a plot. The cohort should cost time in proportion, the population nothing.

`--all` needs no prepared data. It measures population, cohort, model, devices, processes, weak
scaling, the sum over devices, and what each part takes of memory (`scale_runs.py`), into
benchmarks/results/scaling; `--part` measures some of these again, and `--draw` nothing. Then it
draws all that is there, and writes the tables of the page.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks import scale_plots, scale_runs
from fedjax_mem.report import figures

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
  'w1-cohort': (
    'clients of a round (W1)',
    [(c, ['--work', 'W1', '--rounds', '3', '--cohort', str(c)]) for c in (10, 25, 50, 100, 200)],
  ),
  'w1-steps': (
    'local steps of a client (W1)',
    [(3 * e, ['--work', 'W1', '--rounds', '3', '--epochs', str(e)]) for e in (1, 2, 4, 8)],
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


def draw(ax: Any, what: str, rows: list[tuple[float, dict[str, Any]]]) -> None:
  """Draws one sweep: seconds a round, or for W1 rounds a second under the machine's limit."""
  x = np.array([value for value, _ in rows], float)
  middle, low, high = (
    np.array([facts[key] for _, facts in rows]) for key in ('median_s', 'p10_s', 'p90_s')
  )
  label = SWEEPS[what][0]
  if what.startswith('w1-'):
    limit = [facts['gemm_peak_gflops'] / facts['model_gflop_a_round'] for _, facts in rows]
    ax.plot(x, 1 / middle, marker='o', label='measured')
    ax.plot(
      x, limit, '--', color='grey', label='operations of the model at the best matrix product'
    )
    ylabel = 'rounds a second'
  else:
    ax.errorbar(x, middle, [middle - low, high - middle], marker='o', capsize=3, label='measured')
    ylabel = 'seconds a round'
  if what == 'cohort':
    ax.plot(x, middle[-1] * x / x[-1], '--', color='grey', label='in proportion')
  ax.set(xlabel=label, ylabel=ylabel, xscale='log', yscale='log', title=what)
  ax.set_xticks(x, [f'{value:,.0f}' for value in x], fontsize='x-small')
  ax.set_xticks([], minor=True)
  ax.margins(y=0.3)
  ax.legend(frameon=False, fontsize='small')
  ax.grid(alpha=0.3)


def main() -> None:
  """Measures the sweeps, prints their points and draws them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--what',
    nargs='+',
    choices=sorted(SWEEPS),
    default=['cohort', 'population', 'chunk', 'devices'],
  )
  parser.add_argument('--out', default='scaling.png')
  parser.add_argument('--all', action='store_true', help='everything that docs/guide/scale.md has')
  parser.add_argument('--part', nargs='+', choices=list(scale_runs.PARTS), help='of --all')
  parser.add_argument('--draw', action='store_true', help='draw what --all has measured before')
  args = parser.parse_args()
  if args.all or args.part or args.draw:
    if not args.draw:
      scale_runs.run(args.part or list(scale_runs.PARTS))
    scale_plots.show(scale_runs.RESULTS)
    return
  with figures.canvas(4.4 * len(args.what), 3.8) as (figure, _):
    axes = figure.subplots(1, len(args.what), squeeze=False)
    for ax, what in zip(axes[0], args.what, strict=True):
      rows = []
      for value, arguments in SWEEPS[what][1]:
        facts = point(arguments)
        rows.append((value, facts))
        print(json.dumps({'what': what, 'value': value, **facts}), flush=True)
      draw(ax, what, rows)
  figures.save(figure, args.out)
  print(f'plot: {args.out}', file=sys.stderr)


if __name__ == '__main__':
  main()
