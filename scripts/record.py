"""Records what stacks of methods give, and compares that with what was recorded before.

python scripts/record.py                                   writes tests/oracle/recorded.json
python scripts/record.py --only 'private_*'                records some stacks anew
python scripts/record.py --check                           compares: exit code 1 if one differs
python scripts/record.py --random 60 --seed 1 --out FILE   draws pairs of methods and records them
python scripts/record.py --check --against FILE            runs those very pairs, on another commit

A stack is one configuration in `tests/oracle/stacks`; a pair is made of the methods of
`tests/oracle/methods.toml`. All run through the public API only (`one_stack.py`), with the package
that lies beside this script, so the same files serve any commit. A stack whose name begins with
`resumed_` is stopped in its middle and resumed.
"""

import argparse
import fnmatch
import importlib.metadata
import itertools
import json
import math
import multiprocessing
import os
import platform
import random
import sys
import tomllib
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import tomli_w
from rich import progress
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the package of this very commit, whichever is installed
sys.path.append(str(HERE))  # last, so that no script here hides a module of its name

from one_stack import Record, Stack, attempt, prepare  # noqa: E402

ORACLE = HERE.parent / 'tests' / 'oracle'
STACKS, METHODS, RECORDED = ORACLE / 'stacks', ORACLE / 'methods.toml', ORACLE / 'recorded.json'

# (relative, absolute) tolerance of a field; all other fields have to be equal.
TOLERANCES = {
  # Another CPU or version of XLA adds in another order: between AVX2 and AVX-512 that moves a loss
  # of these few rounds by 3e-7 at the most. The rest is room for a value that is rounded at random
  # and tips over. Noise larger by 1% moves a loss by 4e-4 or more, another draw by 1e-2.
  'train_loss': (1e-4, 0.0),
  'test_loss': (1e-4, 0.0),
  # Two of the 359 test examples of digits: those near the border of two labels may tip over.
  'test_accuracy': (0.0, 2.5 / 359),
  # Computed on the host in float64; noise is calibrated to a budget to 1e-8 of its scale.
  'epsilon': (1e-6, 0.0),
  'delta': (1e-6, 0.0),
}


# Many stacks.


def pool(jobs: int) -> ProcessPoolExecutor:
  """Returns processes that run stacks on the CPU."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  return ProcessPoolExecutor(jobs, multiprocessing.get_context('spawn'), prepare)


def bar() -> progress.Progress:
  """Returns a progress bar with the time that is left, on standard error."""
  return progress.Progress(
    progress.TextColumn('{task.description}'),
    progress.BarColumn(),
    progress.MofNCompleteColumn(),
    progress.TimeElapsedColumn(),
    progress.TimeRemainingColumn(),
    console=Console(stderr=True),
  )


def run_all(stacks: list[Stack], jobs: int) -> dict[str, Record]:
  """Returns the records of stacks, by name."""
  records: dict[str, Record] = {}
  with bar() as shown, pool(jobs) as workers:
    task = shown.add_task('stacks', total=len(stacks))
    for stack, record in zip(stacks, workers.map(attempt, stacks), strict=True):
      records[stack.name] = record
      shown.update(task, advance=1, description=stack.name)
  return records


def stacks_in(folder: Path) -> list[Stack]:
  """Returns the stacks in a folder, by name."""
  return [Stack(path.stem, path.read_text()) for path in sorted(folder.glob('*.toml'))]


# Pairs of methods.


def pairs(file: Path) -> list[Stack]:
  """Returns a stack for each pair of methods that do not contradict each other.

  Two methods with stages are a pair in either order.

  Args:
    file: TOML with a table `base`, a whole configuration, and tables `methods.NAME`, what each
      method changes in it.
  """
  raw = tomllib.loads(file.read_text())
  made = []
  for (one, first), (two, second) in itertools.permutations(raw['methods'].items(), 2):
    both = merged(first, second, strict=True)
    if both is not None and (one < two or ('stages' in first and 'stages' in second)):
      made.append(Stack(f'{one}-{two}', tomli_w.dumps(merged(raw['base'], both))))
  return made


def merged(old: Record, new: Record, strict: bool = False) -> Record | None:
  """Returns two tables as one: arrays are joined, and of two values the newer one counts.

  Args:
    old: a table.
    new: a table.
    strict: return None where both have a value and they differ.
  """
  result = dict(old)
  for key, value in new.items():
    before = old.get(key)
    if isinstance(before, list):
      value = [*before, *value]
    elif isinstance(before, dict):
      value = merged(before, value, strict)
    elif strict and before is not None and before != value:
      return None
    if value is None:
      return None
    result[key] = value
  return result


def draw(stacks: list[Stack], count: int, jobs: int) -> tuple[dict[str, str], dict[str, Record]]:
  """Returns the first so many of the stacks that run: (configurations, records) by name.

  Stacks that are refused are no valid pairs; one that breaks is reported on standard error.
  """
  texts: dict[str, str] = {}
  records: dict[str, Record] = {}
  left = iter(stacks)
  with bar() as shown, pool(jobs) as workers:
    task = shown.add_task('pairs', total=count)
    # In order, so that which ones are kept does not depend on who is ready first.
    while len(texts) < count and (some := list(itertools.islice(left, 4 * jobs))):
      for stack, record in zip(some, workers.map(attempt, some), strict=True):
        if 'broken' in record or 'failed' in record:
          shown.console.print(f'{stack.name}: {record}', markup=False)
        if 'rounds' in record and len(texts) < count:
          texts[stack.name], records[stack.name] = stack.text, record
          shown.update(task, advance=1, description=stack.name)
  return texts, records


# What was recorded, and what differs.


def differences(recorded: Record, now: Record) -> list[tuple[str, Any, Any]]:
  """Returns (field, recorded, now) of what differs by more than its tolerance."""
  fields = [*recorded, *(x for x in now if x not in recorded)]
  both = [(x, recorded.get(x), now.get(x)) for x in fields]
  return [row for row in both if not same(*row)]


def same(field: str, recorded: Any, now: Any) -> bool:
  """Returns whether two values of a field are equal, within the tolerance of a float."""
  if field not in TOLERANCES or recorded is None or now is None:
    return recorded == now
  relative, absolute = TOLERANCES[field]
  if math.isnan(recorded):  # the loss of a round in which nobody arrived
    return math.isnan(now)
  return math.isclose(recorded, now, rel_tol=relative, abs_tol=absolute)


def farthest(recorded: dict[str, Record], now: dict[str, Record]) -> tuple[float, str]:
  """Returns the largest relative difference of a loss, and the stack that has it."""
  found = [
    (abs(now[name][x] / old[x] - 1), name)
    for name, old in recorded.items()
    for x in ('train_loss', 'test_loss')
    if old.get(x) and now.get(name, {}).get(x)
  ]
  return max((x for x in found if not math.isnan(x[0])), default=(0.0, ''))


def write(path: Path, facts: Record) -> None:
  """Writes facts as JSON, so that a reader finds the old file or the whole new one."""
  beside = path.with_name(path.name + '.tmp')
  beside.write_text(json.dumps(facts, indent=1) + '\n')
  os.replace(beside, path)


def read(path: Path) -> Record:
  """Returns the facts in a file of records.

  Raises:
    ValueError: there is none, or it is damaged.
  """
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f'the records must be a JSON file, got {path} ({error}).') from error


def made_with() -> Record:
  """Returns what floats may depend on, for a reader of differences."""
  versions = {x: importlib.metadata.version(x) for x in ('jax', 'jaxlib', 'numpy', 'optax')}
  return {**versions, 'machine': f'{platform.system()} {platform.machine()}'}


# The command.


def check(args: argparse.Namespace) -> int:
  """Runs what a file has records of, prints what differs, and returns the exit code."""
  file = args.against or RECORDED
  facts = read(file)
  texts = facts.get('configurations')
  stacks = stacks_in(STACKS) if texts is None else [Stack(*item) for item in texts.items()]
  stacks = chosen(stacks, args.only)
  known = {k: x for k, x in facts['stacks'].items() if fnmatch.fnmatch(k, args.only)}
  names = set(sorted({x.name for x in stacks} | set(known))[args.first :: args.every])
  stacks = [x for x in stacks if x.name in names]
  recorded = {k: x for k, x in known.items() if k in names}
  now = run_all(stacks, args.jobs)
  table = Table('stack', 'field', 'recorded', 'now')
  for name in sorted({*recorded, *now}):
    for row in differences(recorded.get(name, {}), now.get(name, {})):
      table.add_row(name, *map(str, row))
  console = Console(width=None if sys.stdout.isatty() else 140)
  if table.row_count:
    console.print(table)
    if facts['made_with'] != made_with():
      console.print(f'recorded with {facts["made_with"]}, compared with {made_with()}')
  distance, where = farthest(recorded, now)
  words = f'{table.row_count} values differ' if table.row_count else 'no difference'
  console.print(
    f'{words} in {len(now)} stacks; the losses of {where or "none"} are the farthest apart, by '
    f'{distance:.1e} of their value'
  )
  return 1 if table.row_count else 0


def record(args: argparse.Namespace) -> int:
  """Runs the stacks, writes the records of those that run, and returns the exit code."""
  everything = stacks_in(STACKS)
  new = run_all(chosen(everything, args.only), args.jobs)
  bad = {name: x for name, x in new.items() if 'rounds' not in x}
  for name, why in bad.items():
    print(f'{name} is not recorded: {why}', file=sys.stderr)
  old = read(RECORDED)['stacks'] if args.only != '*' and RECORDED.exists() else {}
  found = {name: x for name, x in (old | new).items() if name not in bad}
  kept = {x.name: found[x.name] for x in everything if x.name in found}
  write(RECORDED, {'made_with': made_with(), 'stacks': kept})
  return 1 if bad else 0


def record_pairs(args: argparse.Namespace) -> int:
  """Draws pairs of methods, writes them with their records, and returns the exit code."""
  drawn = pairs(METHODS)
  random.Random(args.seed).shuffle(drawn)
  texts, records = draw(drawn, args.random, args.jobs)
  facts = {'made_with': made_with(), 'seed': args.seed, 'stacks': records, 'configurations': texts}
  write(args.out, facts)
  print(f'{len(texts)} pairs of {len(drawn)} in {args.out}')
  return 0 if len(texts) == args.random else 1


def chosen(stacks: Iterable[Stack], pattern: str) -> list[Stack]:
  """Returns the stacks whose names fit the pattern.

  Raises:
    ValueError: there is none.
  """
  found = [x for x in stacks if fnmatch.fnmatch(x.name, pattern)]
  if not found:
    raise ValueError(f'--only must fit the name of a stack, got {pattern!r}.')
  return found


def main(words: list[str] | None = None) -> int:
  """Runs the command, and returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--check', action='store_true', help='compare, and write nothing')
  parser.add_argument('--against', type=Path, help='file of records to compare with')
  parser.add_argument('--only', default='*', help='pattern of the names of stacks')
  parser.add_argument('--every', type=int, default=1, metavar='K', help='check every Kth by name')
  parser.add_argument(
    '--first', type=int, default=0, help='with --every: which is the first, from 0'
  )
  parser.add_argument('--random', type=int, metavar='N', help='draw N valid pairs of methods')
  parser.add_argument('--seed', type=int, default=0, help='of the draw')
  parser.add_argument('--out', type=Path, help='file of the pairs that are drawn')
  parser.add_argument('--jobs', type=int, default=2, help='processes')
  args = parser.parse_args(words)
  drawn = args.random is not None
  if drawn != (args.out is not None) or (drawn and (args.check or args.only != '*')):
    parser.error('--random and --out go together, without --check and --only')
  if drawn and args.random < 1:
    parser.error(f'--random must be >= 1, got {args.random}')
  if (args.against or args.every != 1) and not args.check:
    parser.error('--against and --every go with --check')
  if args.every < 1:
    parser.error(f'--every must be >= 1, got {args.every}')
  if not 0 <= args.first < args.every:
    parser.error(f'--first must be 0 to K - 1 of --every K, got {args.first}')
  try:
    return (check if args.check else record_pairs if drawn else record)(args)
  except ValueError as error:
    print(f'record.py: {error}', file=sys.stderr)
    return 2


if __name__ == '__main__':
  sys.exit(main())
