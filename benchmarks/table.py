"""The tables of the ten works in the READMEs, and the measurements that they are made of.

    python -m benchmarks.table                                    # renders what was measured
    python -m benchmarks.table --measure [W1 L1 ...] [--peer opacus=PYTHON ...] [--turns 7]

`--measure` runs one work after another; each leaves its line in benchmarks/results/works, so what
was stopped is taken up by naming the works that are left. Ours and the peers are served in
processes of their own (`benchmarks.serve`, `benchmarks.peers`), run rounds in turn, and are alone
with the work: their peak memory is that of all their processes, added up. The first round is
counted from the start of the process to the end of its first round, with an empty cache of
compiled programs and then with the one it left. Peers besides the PyTorch loop need environments
of their own, each given as NAME=PYTHON.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks import measure, rounds, serve, works
from fedjax_mem.runner import devices

RESULTS = rounds.ROOT / 'benchmarks' / 'results' / 'works'
README = rounds.ROOT / 'benchmarks' / 'README.md'
FRONT = rounds.ROOT / 'README.md'
BEGIN, END = '<!-- ten works: begin -->', '<!-- ten works: end -->'

# W4 is measured with one of its ten epochs, which are equally long.
EPOCHS = {'W4': 1}
# What a reader of the front page is told of each.
SAID = {
  'W1': 'CNN, 50 of 1,000 clients',
  'W2': 'the same under client-level privacy',
  'W3': 'logistic regression, 500 of 10,000 clients',
  'W4': 'LeNet, 10 clients of 6,000 examples',
  'L1': 'two LSTMs of 256, 10 clients',
  'R1': 'ResNet-18, 4 clients',
  'T1': 'transformer of two blocks, 10 clients',
  'M1': 'MLP 200-200, 50 of 1,000 clients',
  'D1': 'DP-SGD on the CNN, 8 clients',
  'E1': 'the CNN, top 1% with error feedback',
}
# Beside the PyTorch loop, which has them all.
PEERS = {
  'W1': ('fedjax', 'pfl'),
  'W2': ('fedjax', 'pfl'),
  'W3': ('fedjax', 'pfl'),
  'M1': ('fedjax', 'pfl'),
  'D1': ('opacus',),
}
# How far the losses on the test set may be apart, relatively, after the same number of rounds: the
# draws of parameters, cohorts and batches differ.
TOLERANCE = 0.15


def _start(module: str, folder: str, python: str, cache: str) -> rounds.Peer:
  command = [python, '-m', module, folder]
  return rounds.Peer(command, rounds.ROOT, 'see its header', FEDJAX_MEM_CACHE=cache)


def _first(folder: str, cache: str) -> tuple[rounds.Peer, float]:
  """Returns ours, started, and the seconds from its start to the end of its first round."""
  began = time.perf_counter()
  peer = _start('benchmarks.serve', folder, sys.executable, cache)
  peer.run(1)
  return peer, time.perf_counter() - began


def _progress(*words: Any) -> None:
  print(*words, file=sys.stderr, flush=True)


def measured(name: str, pythons: dict[str, str], turns: int, folder: str) -> dict[str, Any]:
  """Returns the line of a work.

  Args:
    name: a key of `works.WORKS`.
    pythons: interpreters of peers; those not named are left out.
    turns: of each side.
    folder: an empty folder.
  """
  work = works.WORKS[name]
  work = dataclasses.replace(work, epochs=EPOCHS.get(name, work.epochs))
  load = os.getloadavg()[0]  # of others: nothing of ours runs yet
  given, cache = pathlib.Path(folder, 'given'), str(pathlib.Path(folder, 'cache'))
  given.mkdir()
  rounds.write(given, work, works.load(work))
  peer, cold = _first(str(given), cache)
  peer.close()
  ours, warm = _first(str(given), cache)
  _progress(f'{name}: first round after {cold:.1f} s cold, {warm:.1f} s warm')
  sides = {'fedjax_mem': ours}
  for who in ('torch-loop', *PEERS.get(name, ())):
    if who in pythons:
      module = f'benchmarks.peers.{rounds.PEERS[who][0]}'
      sides[who] = _start(module, str(given), pythons[who], cache)
      sides[who].run(1)
  segment = rounds.segment_of(ours.run(1), serve.SEGMENT)
  for who, side in sides.items():
    if who != 'fedjax_mem':
      side.run(1)
    side.seconds.clear()
  for turn in range(turns):
    took = {who: round(side.run(segment), 4) for who, side in sides.items()}
    _progress(f'{name}: turn {turn + 1} of {turns}, seconds of a round: {took}')
  memory = {who: measure.tree_peak_mb(side.pid) for who, side in sides.items()}
  facts = {who: _side(side, memory[who]) for who, side in sides.items()}
  for side in sides.values():
    side.close()
  median = facts['fedjax_mem']['median_s']
  return {
    'work': name,
    'date': datetime.date.today().isoformat(),
    **machine(),
    'load': round(load, 1),
    'rounds': 2 + turns * segment,
    'epochs': work.epochs,
    'model_gflop_a_round': round(work.gflop, 2),
    'mfu': round(work.gflop / median / (peak := measure.gemm_peak_gflops()), 3),
    'gemm_peak_gflops': round(peak, 1),
    'first_cold_s': round(cold, 2),
    'first_warm_s': round(warm, 2),
    'sides': facts,
  }


def _side(side: rounds.Peer, memory: float) -> dict[str, Any]:
  """Returns the figures of one side."""
  versions = {k: v for k, v in side.versions.items() if k != 'root'}
  spread = {k: float(v) for k, v in measure.spread(np.array(side.seconds), 6).items()}
  return {'versions': versions, **spread, 'peak_mb': round(memory), **side.score()}


def machine() -> dict[str, Any]:
  """Returns the machine, in words."""
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
  vectors = 'AVX-512' if any('avx512f' in line for line in lines) else 'no AVX-512'
  return {
    'cpu': names[0] if names else platform.processor() or platform.machine(),
    'cores': devices.cores(),
    'vectors': vectors,
    'python': platform.python_version(),
  }


def best(line: dict[str, Any]) -> tuple[str, dict[str, Any]]:
  """Returns the name and the figures of the fastest peer of a line."""
  peers = {who: side for who, side in line['sides'].items() if who != 'fedjax_mem'}
  return min(peers.items(), key=lambda item: item[1]['median_s'])


def _seconds(x: float) -> str:
  return f'{x:.2f}' if x >= 1 else f'{x:.3f}' if x >= 0.1 else f'{x:.2g}'


def row(line: dict[str, Any]) -> str:
  """Returns the row of a work."""
  who, peer = best(line)
  ours = line['sides']['fedjax_mem']
  apart = abs(ours['loss'] - peer['loss']) / peer['loss'] if 'loss' in peer else None
  check = f'{ours["accuracy"]:.3f} / {peer["accuracy"]:.3f}'
  if apart is not None:
    check += f'; {ours["loss"]:.2f} / {peer["loss"]:.2f}' + (' (!)' if apart > TOLERANCE else '')
  cells = [
    line['work'],
    _seconds(ours['median_s']),
    f'{who}: {_seconds(peer["median_s"])}',
    f'{peer["median_s"] / ours["median_s"]:.2f}',
    f'{line["mfu"]:.2f}',
    f'{ours["peak_mb"]} / {peer["peak_mb"]}',
    f'{line["first_cold_s"]:.1f} / {line["first_warm_s"]:.1f}',
    check,
  ]
  return f'| {" | ".join(cells)} |'


def _caption(lines: list[dict[str, Any]]) -> str:
  """Returns what was measured where, when, and with what."""
  distinct = lambda values: ', '.join(sorted(set(values)))
  machine = distinct(f'{x["cores"]} cores of {x["cpu"]} ({x["vectors"]})' for x in lines)
  peaks = [x['gemm_peak_gflops'] for x in lines]
  versions = distinct(
    f'{name} {version}'
    for x in lines
    for side in x['sides'].values()
    for name, version in side['versions'].items()
  )
  loads = [x['load'] for x in lines]
  return (
    f'{machine}, which ran {min(loads):.1f} to {max(loads):.1f} other tasks at the start; '
    f'best matrix product {min(peaks):.0f} to {max(peaks):.0f} GFLOP/s; '
    f'{distinct(x["date"] for x in lines)}; '
    f'Python {distinct(x["python"] for x in lines)}, {versions}.'
  )


def table(lines: Iterable[dict[str, Any]]) -> str:
  """Returns the table of measured works, in the order of `works.WORKS`, with its caption."""
  order = list(works.WORKS)
  lines = sorted(lines, key=lambda line: order.index(line['work']))
  if not lines:
    return 'Nothing has been measured.'
  head = [
    'work',
    'ours, s a round',
    'best peer, s a round',
    'ratio',
    'mfu',
    'peak MB, ours / peer',
    'first round, s, cold / warm',
    'test accuracy; loss, ours / peer',
  ]
  rows = [f'| {" | ".join(head)} |', '|' + '---|' * len(head), *map(row, lines)]
  return '\n'.join([*rows, '', _caption(lines)])


def short(lines: Iterable[dict[str, Any]]) -> str:
  """Returns what the front page shows of the same works: times, ratio, memory, and the caption."""
  lines = list(lines)
  rows = ['| work | ours | best peer | ratio | peak MB, ours / peer |', '|---|---|---|---|---|']
  for line in sorted(lines, key=lambda x: list(works.WORKS).index(x['work'])):
    name, ours, peer, ratio, _, memory = (x.strip() for x in row(line).split('|')[1:7])
    rows.append(f'| {name}: {SAID[name]} | {ours} | {peer} | {ratio} | {memory} |')
  return '\n'.join([*rows, '', _caption(lines)])


def render(text: str, made: str) -> str:
  """Returns a page with the table between its two markers replaced.

  Raises:
    ValueError: the page lacks a marker.
  """
  before, begin, rest = text.partition(BEGIN)
  _, end, after = rest.partition(END)
  if not begin or not end:
    raise ValueError(f'the page must have the lines {BEGIN!r} and {END!r}, got {text[:40]!r}.')
  return f'{before}{BEGIN}\n{made}\n{END}{after}'


def main() -> None:
  """Measures the works that are asked for, and writes the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--measure', nargs='*', choices=list(works.WORKS), metavar='WORK')
  parser.add_argument('--peer', action='append', default=[], metavar='NAME=PYTHON')
  parser.add_argument('--turns', type=int, default=7, help='of each side, 7 or more')
  args = parser.parse_args()
  pythons = {'torch-loop': sys.executable} | dict(x.split('=', 1) for x in args.peer)
  devices.prepare('auto')
  if args.measure is not None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in args.measure or works.WORKS:
      with tempfile.TemporaryDirectory() as folder:
        line = measured(name, pythons, args.turns, folder)
      (RESULTS / f'{name}.json').write_text(json.dumps(line) + '\n')
      _progress(row(line))
  lines = [json.loads(path.read_text()) for path in RESULTS.glob('*.json')]
  README.write_text(render(README.read_text(), table(lines)))
  FRONT.write_text(render(FRONT.read_text(), short(lines)))


if __name__ == '__main__':
  main()
