"""Runs tests on mutants, in a copy of a tree and in processes of their own."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mutation import drawing
from mutation.drawing import Mutant
from mutation.reports import ADDED

FIRST = 16  # tests of the first process: most mutants die in it, and few files have to be imported
GRACE = 30.0  # seconds after which an orphan ends itself
IMPORT = 'import'  # the killer, where tests cannot even be collected


class Outcome(NamedTuple):
  """How a process ended.

  Attributes:
    code: exit status, negative for a signal, None if the time was up.
    seconds: it took.
    events: (what, node id, seconds since the start) in the order in which the plugin reports them.
    output: the end of what it printed.
  """

  code: int | None
  seconds: float
  events: list[tuple[str, str, float]]
  output: str

  def of(self, what: str) -> list[str]:
    """Returns the node ids of one sort of event."""
    return [test for kind, test, _ in self.events if kind == what]

  @property
  def running(self) -> tuple[str, float] | None:
    """The test that had started last and was not over, and for how many seconds it ran."""
    over = set(self.of('finish'))
    started = [(t, self.seconds - at) for what, t, at in self.events if what == 'start']
    return next((x for x in reversed(started) if x[0] not in over), None)

  def took(self, test: str) -> float:
    """Returns for how many seconds a test ran."""
    at = {what: at for what, name, at in self.events if name == test}
    return at['finish'] - at['start']


class Bench:
  """A copy of a tree (what git tracks, and what it neither tracks nor ignores) to run tests in.

  Args:
    tree: a checkout.
    package: name of the package that the tests import from the copy.
    python: interpreter.
    extra: further arguments of pytest.

  Raises:
    ValueError: the tree is no checkout, or the copy's package is not the one that is imported.
  """

  def __init__(self, tree: Path, package: str, python: str, extra: Sequence[str] = ()):
    self._base = Path(tempfile.mkdtemp(prefix='mutants-')).resolve()
    self.folder = self._base / 'tree'
    self._python = python
    self._extra = list(extra)
    self._process: subprocess.Popen | None = None
    self._stopped = False
    try:
      _copy(tree, self.folder)
      plugins = self._base / 'plugins'
      for made in (plugins, self._base / 'tmp'):
        made.mkdir()
      shutil.copy(Path(__file__).parent / 'reports.py', plugins / 'mutant_reports.py')
      self.env = os.environ | {
        'PYTHONPATH': f'{self.folder}{os.pathsep}{plugins}',
        'PYTHONHASHSEED': '0',
        # What mutants compile is of no use to anybody else.
        'FEDJAX_MEM_CACHE': str(self._base / 'cache'),
        'PYTEST_DEBUG_TEMPROOT': str(self._base / 'tmp'),
      }
      self._check(package)
    except BaseException:
      self.close()
      raise

  def _check(self, package: str) -> None:
    """Raises unless the package is imported from the copy."""
    code = f'import {package}; print({package}.__file__)'
    done = subprocess.run(
      [self._python, '-c', code], cwd=self._base, env=self.env, capture_output=True, text=True
    )
    said = done.stdout.strip().splitlines()
    if done.returncode or not said or not Path(said[-1]).is_relative_to(self.folder):
      raise ValueError(
        f'{package} must be imported from the copy {self.folder}, got '
        f'{said[-1] if said else done.stderr.strip()[-500:]!r}.'
      )

  def close(self) -> None:
    """Ends what runs and removes the copy."""
    self.stop()
    shutil.rmtree(self._base, ignore_errors=True)

  def stop(self) -> None:
    """Ends what runs, now and later."""
    self._stopped = True
    process = self._process
    if process is not None:
      _end(process)

  @contextlib.contextmanager
  def mutated(self, mutants: Sequence[Mutant]) -> Iterator[None]:
    """Applies mutants to the copy, and takes them back at the end."""
    sources = {m['file']: drawing.read(self.folder / m['file']) for m in mutants}
    new = {
      f: drawing.mutated(s, [m for m in mutants if m['file'] == f]) for f, s in sources.items()
    }
    try:
      for file, source in new.items():
        self._write(file, source)
      yield
    finally:
      for file, source in sources.items():
        self._write(file, source)
      # Hypothesis would begin with the example that found the last mutant.
      shutil.rmtree(self.folder / '.hypothesis', ignore_errors=True)

  def _write(self, file: str, source: str) -> None:
    path = self.folder / file
    path.write_bytes(source.encode('utf-8'))
    # Bytecode is told apart by size and second of change: `<` to `>` in one second would be missed.
    for old in path.parent.glob(f'__pycache__/{path.stem}.*.pyc'):
      old.unlink(missing_ok=True)

  def pytest(self, targets: Sequence[str], limit: float, *options: str) -> Outcome:
    """Runs pytest on some node ids or files, for at most `limit` seconds."""
    arguments = self._base / 'arguments'
    arguments.write_text('\n'.join(targets) + '\n', 'utf-8')
    command = [self._python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *ADDED.split()]
    return self.command([*command, *options, *self._extra, f'@{arguments}'], limit)

  def command(self, command: Sequence[str], limit: float | None, added: str = '') -> Outcome:
    """Runs a command in the copy, with `added` to the options of a pytest in it."""
    reports, printed = self._base / 'reports', self._base / 'printed'
    reports.unlink(missing_ok=True)
    env = self.env | {'MUTANT_REPORTS': str(reports)}
    if limit is not None:
      env['MUTANT_ALARM'] = str(limit + GRACE)
    if added:
      env['PYTEST_ADDOPTS'] = f'{env.get("PYTEST_ADDOPTS", "")} {added}'.strip()
    start, clock = time.monotonic(), time.time()
    with printed.open('wb') as out:
      self._process = process = subprocess.Popen(
        command,
        cwd=self.folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        process_group=0,
      )
      try:
        if self._stopped:
          raise InterruptedError('stopped.')
        code = process.wait(limit)
      except subprocess.TimeoutExpired:
        code = None
      finally:
        _end(process)
        self._process = None
    if self._stopped:
      raise InterruptedError('stopped.')
    lines = reports.read_text('utf-8').splitlines() if reports.exists() else []
    events = [json.loads(x) for x in lines if x.endswith(']')]  # the last may be torn
    return Outcome(
      code,
      time.monotonic() - start,
      [(what, test, at - clock) for what, test, at in events],
      printed.read_text('utf-8', errors='replace')[-20000:],
    )


def _copy(tree: Path, to: Path) -> None:
  """Copies what git tracks in a tree, and what it neither tracks nor ignores."""
  command = ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard']
  listed = subprocess.run(command, cwd=tree, capture_output=True)
  if listed.returncode:
    raise ValueError(f'{tree} must be a git checkout: {listed.stderr.decode().strip()}')
  for name in filter(None, listed.stdout.decode().split('\0')):
    if (tree / name).is_file():
      (to / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(tree / name, to / name)


def _end(process: subprocess.Popen) -> None:
  """Kills a process and all that it has started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()


class Judge:
  """Finds what kills a mutant, and counts only what passes without it.

  Args:
    limit: seconds that the tests of one mutant may take in all.
    sound: node ids that are known to pass on the tree as it is.
  """

  def __init__(self, limit: float, sound: Iterable[str] = ()):
    self._limit = limit
    self._sound = dict.fromkeys(sound, True)

  def verdict(self, bench: Bench, mutant: Mutant, tests: Sequence[str]) -> dict[str, Any]:
    """Returns what becomes of a mutant under some tests, as it is written to the file of verdicts.

    The tests run until the first fails. One that fails on the tree as it is, too, is dropped, and
    the rest goes on; so are tests that are not found (the mutant may have removed a case).
    """
    left = [t for t in tests if self._sound.get(t, True)]
    batches = [left[:FIRST], left[FIRST:]]
    spent, ran = 0.0, 0
    verdict, killer = 'survived', None
    notes: list[str] = []
    while verdict == 'survived' and batches:
      batch = batches.pop(0)
      if not batch:
        continue
      if spent >= self._limit:
        notes.append('the time was up')
        break
      with bench.mutated([mutant]):
        outcome = bench.pytest(batch, self._limit - spent, '-x')
      spent += outcome.seconds
      ran += len(set(outcome.of('start')))
      verdict, killer, note, rest = self._look(bench, batch, outcome)
      notes += filter(None, [note])
      batches.insert(0, rest)
    if verdict == 'survived' and not ran:
      verdict = 'no-tests'
    return {
      'id': mutant['id'],
      'mutant': fingerprint(mutant),
      'verdict': verdict,
      'killer': killer,
      'seconds': round(spent, 1),
      'tests': len(tests),
      'ran': ran,
      'note': '; '.join(notes),
    }

  def _look(
    self, bench: Bench, batch: list[str], outcome: Outcome
  ) -> tuple[str, str | None, str, list[str]]:
    """Returns verdict, killer, a note, and the tests that are still to run."""
    gone = {t for t in batch if f'not found: {bench.folder / t}\n' in outcome.output}
    if gone:
      return 'survived', None, f'{len(gone)} tests not found', [t for t in batch if t not in gone]
    if outcome.code in (0, 5):
      note = f'{len(batch)} tests deselected' if outcome.code == 5 else ''
      return 'survived', None, note, []
    if outcome.code is None:
      return self._hung(bench, batch, outcome)
    killer = _killer(outcome)
    if killer is None:
      return 'error', None, f'pytest ended with {outcome.code}: {outcome.output.strip()[-300:]}', []
    broken = [x.rstrip('/') for x in outcome.of('collect')] or [''] if killer == IMPORT else []
    culprits = [t for t in batch if t == killer or any(t.startswith(b) for b in broken)] or batch
    if self._passes(bench, killer, culprits):
      return 'killed', killer, 'the process crashed' if outcome.code < 0 else '', []
    done = {*culprits, *outcome.of('finish')}
    rest = [t for t in batch if t not in done]
    return 'survived', None, f'{killer} fails without the mutant, too', rest

  def _hung(
    self, bench: Bench, batch: list[str], outcome: Outcome
  ) -> tuple[str, str | None, str, list[str]]:
    """Tells a test that a mutant keeps from ending from one that started too late."""
    killer, seconds = outcome.running or (IMPORT, outcome.seconds)
    targets, options = ([killer], []) if outcome.running else (batch, ['--collect-only'])
    clean = bench.pytest(targets, self._limit, *options)
    usual = clean.took(killer) if killer in clean.of('finish') else clean.seconds
    if clean.code == 0 and seconds > 5 * usual + 10:  # the machine may be busy
      return 'timeout', killer, '', []
    return 'survived', None, f'the time was up in {killer}', []

  def _passes(self, bench: Bench, killer: str, culprits: list[str]) -> bool:
    """Whether the killer passes on the tree as it is."""
    if killer == IMPORT:
      files = sorted({t.partition('::')[0] for t in culprits})
      key = f'{IMPORT} {" ".join(files)}'
      if key not in self._sound:
        self._sound[key] = bench.pytest(files, self._limit, '--collect-only').code == 0
      return self._sound[key]
    if killer not in self._sound:
      self._sound[killer] = bench.pytest([killer], self._limit).code == 0
    return self._sound[killer]


def _killer(outcome: Outcome) -> str | None:
  """Returns the first test that failed, `IMPORT` where none could be collected, None for an error.

  An error of usage or inside pytest is nobody's failure.
  """
  code = outcome.code or 0
  if code in (1, 2) and (failed := outcome.of('failed')):
    return failed[0]
  if code in (1, 2, 4) and outcome.of('collect'):
    return IMPORT
  if code == 4 and 'while loading conftest' in outcome.output:
    return IMPORT
  if code < 0 or code >= 128:
    return outcome.running[0] if outcome.running else IMPORT
  return None


def fingerprint(mutant: Mutant) -> str:
  """Returns a short digest of what a mutant changes, so that verdicts on others are told apart."""
  what = [mutant[k] for k in ('file', 'start', 'old', 'new', 'text')]
  return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
