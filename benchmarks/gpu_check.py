"""What an accelerator does with all of this, part by part: what `benchmarks/gpu_check.sh` runs.

    python -m benchmarks.gpu_check PART [--small] [--budget SECONDS] [--out PART.json]
    python -m benchmarks.gpu_check summary --out FOLDER

Parts: engine, works, clients, conv, kernels, peers. A part writes its JSON after each of its items,
so that one that is stopped leaves what it has. An item that fails says so in its place; one for
which no time is left is named under `left_out`. `--small` is for a CPU: the same code on small
shapes, to see that it runs. Its seconds mean nothing.
"""

import argparse
import json
import os
import pathlib
from typing import Any

from benchmarks import gpu_kit, gpu_parts

CARD = ('platform', 'device_kind', 'driver', 'jax', 'runtime')


def summary(folder: pathlib.Path, seconds: float) -> dict[str, Any]:
  """Returns and keeps what the parts in a folder have told, `summary.json`, and prints it in short.

  Args:
    folder: the parts' files.
    seconds: that all of it took.
  """
  found = {name: folder / f'{name}.json' for name in gpu_parts.PARTS}
  parts = {name: json.loads(x.read_text()) for name, x in found.items() if x.exists()}
  told = {key: x for part in parts.values() for key, x in part.items() if key in CARD}
  whole = {**told, 'seconds': seconds, 'parts': {name: parts.get(name) for name in gpu_parts.PARTS}}
  (folder / 'summary.json').write_text(json.dumps(whole, indent=1) + '\n')
  for name in gpu_parts.PARTS:
    part = parts.get(name)
    how = 'nothing' if part is None else 'complete' if part['complete'] else 'stopped'
    print(f'{name}: {how}')
    for item, figures in (part or {}).get('items', {}).items():
      print(f'  {item}: ' + (figures.get('failed') or _short(figures)))
    if part and part.get('left_out'):
      print('  left out: ' + ', '.join(part['left_out']))
  ours = (parts.get('works') or {}).get('items', {})
  for item, figures in (parts.get('peers') or {}).get('items', {}).items():
    work = ours.get(item.split()[0], {})
    if 'median_s' in work and 'median_s' in figures:
      print(f'  PyTorch {item}: {figures["median_s"] / work["median_s"]:.2f} x our time')
  print(', '.join(f'{key} {x}' for key, x in told.items()) + f': {seconds:.0f} s in all')
  return whole


def _short(figures: dict[str, Any]) -> str:
  """Returns figures in one line."""
  return ', '.join(f'{name} {x}' for name, x in figures.items() if name != 'took_s')


def main() -> None:
  """Runs a part, or sums all of them up."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('part', choices=(*gpu_parts.PARTS, 'reference', 'summary'))
  parser.add_argument('--small', action='store_true', help='shapes for a CPU')
  parser.add_argument('--budget', type=float, default=480.0, help='seconds')
  parser.add_argument('--seconds', type=float, default=0.0, help='of all, for the summary')
  parser.add_argument('--out', type=pathlib.Path)
  args = parser.parse_args()
  if args.part == 'summary':
    summary(args.out, args.seconds)
    return
  if args.part == 'reference':
    gpu_parts.reference(args.out, args.small)
    return
  if args.part == 'peers':  # else jax takes most of the card's memory at its start
    os.environ['XLA_PYTHON_CLIENT_PREALLOCATE'] = 'false'
  part = gpu_kit.Part(args.part, args.small, args.budget, args.out)
  gpu_parts.PARTS[args.part](part)
  part.end()


if __name__ == '__main__':
  main()
