"""Runs one stack of methods through the public API, and says what it gives: see `record.py`.

Nothing is used but `fm.load_config`, `fm.run`, `fm.resume`, what they return, and the class
`fm.Simulation`, so that the same stacks run on any commit. The cohorts are what its `run` returns
(`ids`, and how many clients and examples arrived in each round): a run's own records leave the ids
out, since under differential privacy a released cohort, hashed or not, would undo the amplification
by sampling.
"""

import contextlib
import hashlib
import io
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fedjax_mem as fm

RESUMED = 'resumed_'  # such a stack is stopped in its middle and resumed
LAST = ('train_loss', 'test_loss', 'test_accuracy', 'epsilon', 'delta')
TOTAL = ('clients', 'examples', 'bytes_up', 'bytes_down')

Record = dict[str, Any]

_finished = itertools.count(1)  # stacks of this process


class Stack(NamedTuple):
  """One configuration to run.

  Attributes:
    name: of the stack.
    text: the configuration, in TOML.
  """

  name: str
  text: str


class Stopped(BaseException):
  """Stands for the death of a run: nothing in the package may catch it."""


@contextlib.contextmanager
def watched(stop: int | None = None) -> Iterator[list]:
  """Gives a list that grows by [ids, clients, examples] of each round that runs inside.

  Args:
    stop: rounds after which a run dies, before the last of them is written down; None: it lives.
  """
  seen: list = []
  run = fm.Simulation.run

  def noting(*args: Any, **options: Any) -> Any:
    state, rows = run(*args, **options)
    for ids, clients, examples in zip(rows['ids'], rows['clients'], rows['examples'], strict=True):
      # Sorted: where a client stands in its cohort depends on how the round is executed.
      seen.append([sorted(x for x in ids.tolist() if x >= 0), int(clients), int(examples)])
    if stop is not None and len(seen) >= stop:
      raise Stopped
    return state, rows

  fm.Simulation.run = noting  # type: ignore[method-assign]
  try:
    yield seen
  finally:
    fm.Simulation.run = run  # type: ignore[method-assign]


def load(path: Path) -> fm.Config:
  """Returns the configuration in a file, its noise seeded wherever there is a key for that."""
  config = fm.load_config(path)
  # Earlier commits draw all noise from the seed, and have no such key.
  free = getattr(config, 'noise_seed', config.seed) is None and config.privacy.delta is not None
  return fm.load_config(path, [f'noise_seed={config.seed}']) if free else config


def measure(stack: Stack, folder: Path) -> Record:
  """Returns what a stack gives, run in a folder.

  Raises:
    ValueError: the configuration is refused.
    RunFailed: the run cannot go on.
    RuntimeError: the run did not pass where cohorts are seen, or did not stop where it should.
  """
  path = folder / f'{stack.name}.toml'
  path.write_text(stack.text)
  config, out = load(path), folder / 'runs'
  if not stack.name.startswith(RESUMED):
    with watched() as seen:
      metrics = fm.run(config, out, quiet=True).metrics
    return summary(metrics, seen)
  with watched(config.rounds // 2 + 1) as before, contextlib.suppress(Stopped):
    fm.run(config, out, quiet=True)
  (home,) = out.iterdir()
  with watched() as after:
    metrics = fm.resume(home, quiet=True).metrics
  # Rounds that were lost are run again. At least one must be kept, and one run anew.
  kept = len(metrics) - len(after)
  if not 0 < kept < len(before):
    raise RuntimeError(
      f'{stack.name} must be stopped after a checkpoint and before the next, got {len(before)} '
      f'rounds before the stop and {len(after)} after it.'
    )
  return summary(metrics, before[:kept] + after)


def summary(metrics: list[Record], seen: list) -> Record:
  """Returns the record of a run: its last values, its totals, its cohorts.

  Args:
    metrics: one record a round, as in `metrics.jsonl`.
    seen: [ids, clients, examples] of each round.

  Raises:
    RuntimeError: the rounds of both are not the same.
  """
  if [x['clients'] for x in metrics] != [x[1] for x in seen]:
    raise RuntimeError(
      f'fm.Simulation.run must show the cohorts of all {len(metrics)} rounds of a run, '
      f'got {len(seen)}.'
    )
  record: Record = {'rounds': len(metrics)}
  record |= {name: metrics[-1][name] for name in LAST if name in metrics[-1]}
  record |= {name: sum(x[name] for x in metrics) for name in TOTAL}
  record['cohorts'] = hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]
  return record


def attempt(stack: Stack) -> Record:
  """Returns the record of a stack, or why there is none, in one line.

  Whatever goes wrong is a record as well: a comparison shows it and goes on to the next stack.
  """
  said = io.StringIO()
  with (
    tempfile.TemporaryDirectory() as folder,
    contextlib.redirect_stdout(said),
    contextlib.redirect_stderr(said),
  ):
    try:
      return measure(stack, Path(folder))
    except ValueError as error:
      return {'refused': _line(error)}
    except fm.RunFailed as error:
      return {'failed': _line(error).partition(';')[0]}  # the rest names the folder
    except Exception as error:
      return {'broken': f'{type(error).__name__}: {_line(error)}'}
    finally:
      _forget()


def _line(error: Exception) -> str:
  return (str(error).splitlines() or [''])[0]


def _forget() -> None:
  """Frees programs now and then: those of all stacks together would be gigabytes."""
  import jax

  if next(_finished) % 8 == 0:
    jax.clear_caches()


def prepare() -> None:
  """Readies a process for stacks: quick compiling, two host devices, and pictures not drawn."""
  import jax
  from matplotlib.figure import Figure

  from tests.reference import compiling

  # As the tests do: what is recorded is what a stack means, which no optimization may change.
  compiling.quickly()
  compiling.shared(compiling.cache_folder())
  jax.config.update('jax_num_cpu_devices', 2)
  jax.devices()  # from now on a run can no longer ask for fewer
  # A run ends with a report, whose pictures take a quarter of the time and are not looked at.
  Figure.savefig = lambda figure, file, **options: file.write(b'\x89PNG')  # type: ignore
