"""How long until the first round? Seconds from the start of the process to its record on the disk.

python -m benchmarks.first [--config configs/quickstart.toml | --work W1] [--set KEY=VALUE …]
    [--times 3] [--against-commit SHA [--commit-python PYTHON]]

A process runs the experiment as `fedjax-mem run` does and is stopped when its first record is
written; an evaluation is not waited for. `cold` starts have an empty cache of compiled programs
and none of our modules as bytecode, as after `pip install -e .`; `warm` ones have what the cold
start before left. With `--against-commit` each of them is followed by one of that
commit, whose worktree `benchmarks.rounds` makes. JSON lines: the medians, in parts.

`cpu` is the time of all cores: on a busy machine it says more than the seconds.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

# Each as a configuration, which a commit without the work can run, too.
_FASHION = """
version = 1
name = "first"
rounds = 1000
[data]
name = "fashion_mnist"
partition = "blocks"
num_clients = {clients}
examples_per_client = {examples}
[model]
name = "{model}"
options = {options}
[algorithm]
name = "fedavg"
[client]
batch_size = {batch}
learning_rate = {rate}
momentum = {momentum}
[selection]
name = "uniform"
cohort_size = {cohort}
[weighting]
name = "examples"
[evaluation]
every = 1000
"""


def _fashion(model: str, clients: int, examples: int, cohort: int, batch: int, **more: Any) -> str:
  given = {'options': '{}', 'rate': 0.05, 'momentum': 0.0, **more}
  return _FASHION.format(
    model=model, clients=clients, examples=examples, cohort=cohort, batch=batch, **given
  )


WORKS = {
  'W1': _fashion('cnn', 1_000, 60, 50, 20),
  'W4': _fashion('lenet', 10, 6_000, 10, 64, rate=0.01, momentum=0.9),  # one local epoch
  'R1s': _fashion('resnet_gn', 4, 60, 4, 20, options='{ width = 16 }'),
}


def _age() -> float:
  """Returns the seconds since this process started."""
  ticks = int(pathlib.Path('/proc/self/stat').read_text().rsplit(')', 1)[1].split()[19])
  up = float(pathlib.Path('/proc/uptime').read_text().split()[0])
  return up - ticks / os.sysconf('SC_CLK_TCK')


def one(config: str, out: str, overrides: list[str]) -> None:
  """Runs an experiment in this process up to its first record, and prints the parts."""
  import jax

  parts: dict[str, float] = {}

  def heard(event: str, seconds: float, **_: Any) -> None:
    for name, said in (('trace', 'jaxpr_trace'), ('lower', 'to_mlir'), ('compile', 'backend_comp')):
      if said in event:
        parts[name] = parts.get(name, 0.0) + seconds
        parts['programs'] = parts.get('programs', 0) + (name == 'compile')

  jax.monitoring.register_event_duration_secs_listener(heard)
  from fedjax_mem.cli import main as cli
  from fedjax_mem.report import tracker
  from fedjax_mem.runner import loop  # noqa: F401, as part of the imports

  parts['imports'] = _age()

  def first(self: Any, record: dict[str, Any]) -> None:
    parts['round'] = record['seconds']
    parts['total'], cpu = _age(), time.process_time()
    print(json.dumps({**parts, 'cpu': cpu}), flush=True)
    os._exit(0)  # at once: nothing after the first round is asked for

  tracker.MetricsWriter.write = first
  words = ['run', config, '--out', out, '--quiet', *(f'--set={x}' for x in overrides)]
  raise SystemExit(cli.main(words) or 'no record was written')


def start(
  python: str, root: pathlib.Path, cache: str, kind: str, args: argparse.Namespace
) -> dict[str, Any]:
  """Starts a process on the package in `root`, 'cold' or 'warm', and returns its parts."""
  env = {**os.environ, 'PYTHONPATH': str(root), 'FEDJAX_MEM_CACHE': cache}
  for name in ('PYTHONDONTWRITEBYTECODE', 'PYTHONPYCACHEPREFIX'):
    env.pop(name, None)
  if kind == 'cold':
    for folder in list((root / 'fedjax_mem').rglob('__pycache__')):
      shutil.rmtree(folder, ignore_errors=True)
  with tempfile.TemporaryDirectory() as out:
    config = str(pathlib.Path(args.config).resolve())
    if args.work:
      config = f'{out}/work.toml'
      pathlib.Path(config).write_text(WORKS[args.work])
    done = subprocess.run(
      [python, '-P', __file__, '--one', config, out, *args.set],  # -P: not the folder of this file
      cwd=root,
      env=env,
      stdout=subprocess.PIPE,
      text=True,
    )
  if done.returncode:
    raise SystemExit(f'the experiment failed in {root}: its message is above.')
  facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
  return facts


def main() -> None:
  """Starts processes, in turn, and prints their medians."""
  if sys.argv[1:2] == ['--one']:
    one(sys.argv[2], sys.argv[3], sys.argv[4:])
    return
  from benchmarks import rounds

  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--config', default=str(rounds.ROOT / 'configs' / 'quickstart.toml'))
  parser.add_argument('--work', choices=sorted(WORKS))
  parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE')
  parser.add_argument('--times', type=int, default=3, help='cold starts, each before a warm one')
  parser.add_argument('--against-commit', metavar='SHA')
  parser.add_argument('--commit-python', help='its interpreter, if no new environment is wanted')
  args = parser.parse_args()
  sides = {'ours': (sys.executable, rounds.ROOT)}
  if args.against_commit:
    commit, tree = rounds.checkout(args.against_commit)
    given = args.commit_python and rounds.interpreter(args.commit_python)
    sides[commit] = (given or rounds.environment(tree), tree)
  seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for _ in range(args.times):
    with tempfile.TemporaryDirectory() as cache:
      for kind in ('cold', 'warm'):
        for name, (python, root) in sides.items():
          facts = start(python, root, f'{cache}/{name}', kind, args)
          seen.setdefault((name, kind), []).append(facts)
  for (name, kind), all in seen.items():
    median = {x: round(float(np.median([one[x] for one in all])), 2) for x in all[0]}
    print(json.dumps({'work': args.work or args.config, 'of': name, 'start': kind, **median}))


if __name__ == '__main__':
  main()
