"""A mutation run: which small wrong changes of the package do the tests notice?

It compares the tests before and after they are changed; the package stays as it is.

  python scripts/mutate.py draw --count 60 --seed 0 --out mutants.json
  python scripts/mutate.py contexts --out contexts.json -- --all -n 2
  python scripts/mutate.py contexts --out contexts.json --from .coverage --junit junit.xml
  python scripts/mutate.py run --mutants mutants.json --contexts contexts.json
      --out verdicts.jsonl -- --all
  python scripts/mutate.py everything --mutants mutants.json --verdicts verdicts.jsonl
      --out everything.jsonl -- python -m pytest -q -n 2
  python scripts/mutate.py table --mutants mutants.json --before old.jsonl --after new.jsonl

`run` gives each mutant only the tests that execute its line (see `mutation/contexts.py`) and goes
on where it was stopped. `everything` applies all survivors at once to one copy and runs a command
in it, the whole test run, say. If that passes, each of them is taken to survive everything. This
assumes that no mutant masks another: one may undo the other's effect, or keep its line from being
executed. If tests fail, each survivor alone runs against those. Where mutants died so, run it
again, with both files of verdicts, as these may have masked others; put the command's options so
that it does not stop at the first failure.

Where a mutant has several verdicts, the last one counts; one that is an `error` is tried again.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from mutation import drawing
from mutation.contexts import Contexts, convert
from mutation.drawing import Mutant
from mutation.reports import ADDED
from mutation.runs import Bench, Judge, fingerprint
from mutation.table import Verdicts, page
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

HERE = Path(__file__).resolve().parent
NONE = {'verdict': 'error'}  # where no verdict has fallen
PACKAGES = [f'fedjax_mem/{room}' for room in ('core', 'stages', 'account', 'engine')]


def _write(path: Path, text: str) -> None:
  """Writes a whole file or nothing."""
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_name(path.name + '.new')
  new.write_text(text, 'utf-8')
  os.replace(new, path)


def _read_json(path: Path) -> Any:
  try:
    return json.loads(path.read_text('utf-8'))
  except ValueError as e:
    raise ValueError(f'{path} must hold JSON: {e}') from e


def read_verdicts(paths: Sequence[Path], mutants: Sequence[Mutant]) -> Verdicts:
  """Returns the last verdict on each mutant.

  Raises:
    ValueError: a file has verdicts on other mutants.
  """
  known = {m['id']: fingerprint(m) for m in mutants}
  verdicts: Verdicts = {}
  for path in paths:
    for line in path.read_text('utf-8').splitlines():
      try:
        verdict = json.loads(line)
      except ValueError:
        continue  # torn when the run was killed; the mutant runs again
      if known.get(verdict['id']) != verdict['mutant']:
        raise ValueError(
          f'{path} has a verdict on another mutant than {verdict["id"]} of the file.'
        )
      verdicts[verdict['id']] = verdict
  return verdicts


def draw(args: argparse.Namespace) -> None:
  """Writes mutants."""
  drawn = drawing.draw(args.tree, args.packages, args.count, args.seed)
  _write(args.out, json.dumps(drawn, indent=1, ensure_ascii=False) + '\n')


def contexts(args: argparse.Namespace) -> None:
  """Writes which tests execute a line."""
  if (args.data is None) != (args.junit is None):
    raise ValueError('--from and --junit must be given together.')
  with tempfile.TemporaryDirectory() as folder:
    data, junit = args.data or Path(folder, 'coverage'), args.junit or Path(folder, 'junit.xml')
    if args.data is None:
      tops = dict.fromkeys(p.partition('/')[0] for p in args.packages)
      command = [args.python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'--junitxml={junit}']
      command += [f'--cov={top}' for top in tops]
      command += ['--cov-context=test', '--cov-report=', *args.rest]
      env = os.environ | {'PYTHONPATH': str(args.tree), 'COVERAGE_FILE': str(data)}
      code = subprocess.run(command, cwd=args.tree, env=env, stdout=sys.stderr).returncode
      if code not in (0, 1):
        raise ValueError(f'the tests did not run: pytest ended with {code}.')
    found = convert(data, junit, args.tree, args.packages)
  _write(args.out, json.dumps(found, separators=(',', ':')) + '\n')


@contextlib.contextmanager
def _benches(args: argparse.Namespace, mutants: Sequence[Mutant], count: int) -> Iterator:
  """Yields copies of the tree; at the end what runs in them is ended, and they are removed."""
  drawing.check(args.tree, mutants)
  package = mutants[0]['file'].partition('/')[0]
  with contextlib.ExitStack() as stack:
    made = []
    for _ in range(count):
      made.append(Bench(args.tree, package, args.python, args.rest))
      stack.callback(made[-1].close)
    yield made


def _judge_all(
  mutants: Sequence[Mutant],
  judge: Judge,
  tests: Callable[[Mutant], tuple[list[str], str]],
  benches: Sequence[Bench],
  out: Path,
) -> None:
  """Appends the verdict on each mutant to a file when it falls."""
  free: queue.Queue[Bench] = queue.Queue()
  for bench in benches:
    free.put(bench)

  def one(mutant: Mutant) -> dict[str, Any]:
    chosen, note = tests(mutant)
    bench = free.get()
    try:
      verdict = judge.verdict(bench, mutant, chosen)
    finally:
      free.put(bench)
    return verdict | {'note': '; '.join(filter(None, (note, verdict['note'])))}

  columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
  # The bar is on stderr. On one terminal it has to know about the lines on stdout.
  bar = Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty())
  with bar, ThreadPoolExecutor(len(benches)) as pool:
    task = bar.add_task('', total=len(mutants))
    running = [pool.submit(one, m) for m in mutants]
    try:
      for done in as_completed(running):
        verdict = done.result()
        _append(out, [verdict])
        bar.advance(task)
        print(_line(verdict), flush=True)
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      for bench in benches:
        bench.stop()
      raise


def _append(path: Path, verdicts: Sequence[dict[str, Any]]) -> None:
  """Appends verdicts to a file, so that they are there whatever happens next."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open('ab+') as out:
    if out.tell():
      out.seek(-1, os.SEEK_END)
      if out.read() != b'\n':
        out.write(b'\n')  # the last line was torn
    for verdict in verdicts:
      out.write(json.dumps(verdict).encode() + b'\n')
    out.flush()
    os.fsync(out.fileno())


def _line(verdict: dict[str, Any]) -> str:
  by = f' by {verdict["killer"]}' if verdict['killer'] else ''
  note = f' ({verdict["note"]})' if verdict['note'] else ''
  return f'{verdict["id"]} {verdict["verdict"]}{by} in {verdict["seconds"]} s{note}'


def run(args: argparse.Namespace) -> None:
  """Runs on each mutant without a verdict the tests that execute it."""
  mutants = _read_json(args.mutants)
  found = Contexts(args.contexts)
  old = read_verdicts([args.out] if args.out.exists() else [], mutants)
  left = [m for m in mutants if old.get(m['id'], {}).get('verdict', 'error') == 'error']
  if not left:
    return

  def tests(mutant: Mutant) -> tuple[list[str], str]:
    chosen = found.select(mutant, args.budget)
    cut = chosen.found > len(chosen.tests)
    return chosen.tests, f'{chosen.found} tests cut to the budget' if cut else ''

  judge = Judge(args.limit, [v['killer'] for v in old.values() if v['verdict'] == 'killed'])
  with _benches(args, left, min(args.jobs, len(left))) as benches:
    _judge_all(left, judge, tests, benches, args.out)


def everything(args: argparse.Namespace) -> None:
  """Runs a command on all survivors at once, and each of them on the tests that fail."""
  if not args.rest:
    raise ValueError('a command is needed after --.')
  mutants = _read_json(args.mutants)
  verdicts = read_verdicts(args.verdicts, mutants)
  if missing := [m['id'] for m in mutants if verdicts.get(m['id'], NONE)['verdict'] == 'error']:
    raise ValueError(f'no verdict yet on {", ".join(missing)}.')
  left = [m for m in mutants if verdicts[m['id']]['verdict'] in ('survived', 'no-tests')]
  if not left:
    return
  command, args.rest = args.rest, []
  with _benches(args, left, 1) as benches:
    with benches[0].mutated(left):
      outcome = benches[0].command(command, None, ADDED)
    failing = list(dict.fromkeys(outcome.of('failed') + outcome.of('collect')))
    if outcome.code and not failing:
      raise ValueError(f'the command ended with {outcome.code}, no test: {outcome.output[-500:]}')
    if outcome.code == 0 and not outcome.of('finish'):
      raise ValueError('the command ran no test.')
    whole = f'with {len(left)} survivors at once: {len(outcome.of("finish"))} tests'
    note = f'{whole}, {len(failing)} failed' if failing else f'{whole} passed'
    if not failing:
      passed = {'verdict': 'survived', 'killer': None, 'seconds': round(outcome.seconds, 1)}
      found = [
        {'id': m['id'], 'mutant': fingerprint(m)} | passed | {'tests': 0, 'ran': 0, 'note': note}
        for m in left
      ]
      _append(args.out, found)
      print('\n'.join(map(_line, found)))
      return
    _judge_all(left, Judge(args.limit), lambda m: (failing, note), benches, args.out)


def table(args: argparse.Namespace) -> None:
  """Writes the table."""
  mutants = _read_json(args.mutants)
  arguments = _read_json(args.arguments) if args.arguments else {}
  if unknown := sorted(set(arguments) - {m['id'] for m in mutants}):
    raise ValueError(f'{args.arguments} argues for unknown mutants: {", ".join(unknown)}.')
  before, after = (read_verdicts(x, mutants) for x in (args.before, args.after))
  text, complaints = page(mutants, before, after, arguments)
  _write(args.out, text)
  if complaints:
    raise SystemExit('\n'.join(complaints))


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  commands = parser.add_subparsers(required=True, metavar='command')

  def command(function: Callable[[argparse.Namespace], None]) -> Callable[..., Any]:
    made = commands.add_parser(function.__name__, help=function.__doc__)
    made.set_defaults(function=function)
    made.add_argument('--out', type=Path, required=True)
    return made.add_argument

  def tree(add: Callable[..., Any]) -> None:
    add('--tree', type=Path, default=HERE.parent, help='a checkout (default: this one)')
    add('--python', default=sys.executable, help='interpreter that runs the tests')

  packages = {'nargs': '+', 'default': PACKAGES, 'help': 'folders in the tree'}
  add = command(draw)
  tree(add)
  add('--count', type=_positive(int), default=60)
  add('--seed', type=int, default=0)
  add('--packages', **packages)
  add = command(contexts)
  tree(add)
  add('--packages', **packages)
  add('--from', type=Path, dest='data', help='coverage data to convert, instead of a run')
  add('--junit', type=Path, help='JUnit file of the same run')
  for function in (run, everything):
    add = command(function)
    tree(add)
    add('--mutants', type=Path, required=True)
    add('--limit', type=_positive(float), default=300.0, help='seconds for the tests of a mutant')
    if function is run:
      add('--contexts', type=Path, required=True)
      add('--jobs', type=_positive(int), default=2, help='mutants side by side')
      add('--budget', type=_positive(float), default=60.0, help='recorded seconds of its tests')
    else:
      add('--verdicts', type=Path, nargs='+', required=True)
  add = command(table)
  add('--mutants', type=Path, required=True)
  add('--before', type=Path, nargs='+', required=True)
  add('--after', type=Path, nargs='+', required=True)
  add('--arguments', type=Path, help='JSON, mutant to why nothing can tell it from the original')
  return parser


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
  def parse(text: str) -> Any:
    if not kind(text) > 0:
      raise argparse.ArgumentTypeError(f'must be > 0, got {text}.')
    return kind(text)

  return parse


def main(argv: Sequence[str]) -> None:
  """Runs a command; what follows `--` goes to pytest, or is the command of `everything`."""
  own = list(argv)
  at = own.index('--') if '--' in own else len(own)
  args = _parser().parse_args(own[:at])
  args.rest = own[at + 1 :]
  if args.rest and args.function in (draw, table):
    raise SystemExit('nothing may follow -- here.')
  if 'tree' in args:
    args.tree = args.tree.resolve()
  try:
    args.function(args)
  except (ValueError, OSError) as e:
    raise SystemExit(f'error: {e}') from e


if __name__ == '__main__':
  # So that copies are removed when this is asked to end.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  main(sys.argv[1:])
