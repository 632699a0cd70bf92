"""The host loop: segments of rounds, and between them evaluation, records and checkpoints.

Under a claim of privacy the order is: the ledger is charged and on the disk, the segment runs, its
records are written, a checkpoint is saved. So a run that is killed anywhere has never published a
round that its ledger does not count.
"""

import math
import os
import pathlib
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax
import numpy as np

from fedjax_mem.config.load import Config
from fedjax_mem.core import State, tree
from fedjax_mem.engine import Simulation, describe
from fedjax_mem.report.tracker import MetricsWriter, read_metrics, truncate_after
from fedjax_mem.runner import ledgers as spending
from fedjax_mem.runner import secret
from fedjax_mem.runner.checkpoint import Checkpoints
from fedjax_mem.runner.ending import Result, finish
from fedjax_mem.runner.folder import RunFolder, create
from fedjax_mem.runner.interrupt import Interrupt
from fedjax_mem.runner.prepare import Given, Ready, facts, get_ready, keeps_root
from fedjax_mem.runner.progress import Progress
from fedjax_mem.runner.records import of_run
from fedjax_mem.runner.traffic import sent

# (rounds, rounds done before, quiet) -> what shows the progress
ProgressFn = Callable[[int, int, bool], Progress]


class RunFailed(RuntimeError):
  """A run that cannot go on; the message says why, in which round, and what is left."""


class Interrupted(KeyboardInterrupt):
  """A run that was interrupted and has kept a checkpoint; the message says how to go on."""


def run(
  config: Config,
  out: str | os.PathLike[str] = 'runs',
  *,
  data: Given = None,
  data_dir: str | None = None,
  quiet: bool = False,
  progress: ProgressFn = Progress,
) -> Result:
  """Runs an experiment and returns its result; everything is in the run's folder as well.

  >>> import contextlib, tempfile
  >>> config = fm.load_config('configs/quickstart.toml', ['rounds=1', 'data.num_clients=10'])
  >>> with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(None):
  ...   result = run(config, out, quiet=True)
  >>> {'train_loss', 'test_accuracy', 'bytes_up'} <= set(result.metrics[-1])
  True

  Args:
    config: the experiment.
    out: folder in which the run's folder `<name>-<hash>` is made.
    data: the data of an experiment whose `data.name` is 'given', before or after its partition.
    data_dir: where prepared data sets are; None: the environment or the default decides.
    quiet: report progress by plain lines, without a bar.
    progress: (rounds, rounds done before, quiet) -> what shows the progress.

  Raises:
    ValueError: bad input; nothing has run.
    RunFailed: the run cannot go on; the folder holds the last good checkpoint.
    Interrupted: by Ctrl-C, after a checkpoint.
  """
  ready = get_ready(config, data_dir, {}, data)
  folder = create(config, out, ready.sim.root if keeps_root(ready) else None)
  with folder.locked():
    folder.note(data_dir=data_dir and str(pathlib.Path(data_dir).absolute()), **facts(ready))
    return _Loop(ready, folder, quiet, progress).go(ready.sim.init(ready.parts.params), [])


def resume(
  path: str | os.PathLike[str],
  *,
  data: Given = None,
  data_dir: str | None = None,
  quiet: bool = False,
  progress: ProgressFn = Progress,
) -> Result:
  """Goes on with an unfinished run from its newest sound checkpoint, as if it had not stopped.

  The path is that of the run, such as `resume('runs/quickstart-d5ec03a3')`. Another folder is
  refused:

  >>> resume('configs')
  Traceback (most recent call last):
    ...
  ValueError: a run must be a folder with config.toml and manifest.json, got 'configs'.

  Args:
    path: the run's folder.
    data: as in `run`, the same data.
    data_dir: where prepared data sets are; None: where the run found them.
    quiet: report progress by plain lines, without a bar.
    progress: as in `run`.

  Raises:
    ValueError: not a run's folder, a run that is finished, in use, on real machines or of another
      configuration, or one whose secret root is missing or of another run.
    RunFailed: the run cannot go on.
    Interrupted: by Ctrl-C, after a checkpoint.
  """
  folder = RunFolder(pathlib.Path(path))
  with folder.locked():
    said = folder.manifest
    if said.get('deployed'):  # its clients have states, and data, of their own
      raise ValueError(
        f'the run in {folder.path} must be a simulation to resume it, got one on real machines: go '
        f'on with `{folder.again}`.'
      )
    if said.get('together'):
      raise ValueError(
        f'the run in {folder.path} must be one alone to resume it, got a lane of a sweep: go on '
        f'with `{folder.again}`.'
      )
    # A finished run without a report was killed while the report was written: it may resume.
    if said.get('status') == 'finished' and (folder.path / 'report.html').exists():
      raise ValueError(f'the run in {folder.path} must be unfinished to resume it: it is finished.')
    folder.check_config()
    where, recorded = data_dir or said.get('data_dir'), said.get('execution', {})
    ready = get_ready(folder.config, where, recorded, data, said.get('data_sha256'))
    if keeps_root(ready):
      root = secret.read(folder.path, said.get('run_id'))
      ready = ready._replace(sim=ready.sim.with_root(root))
    if 'execution' not in said:  # killed before its first round
      folder.note(**facts(ready))
    loop = _Loop(ready, folder, quiet, progress)
    return loop.go(*loop.restore())


class _Loop:
  """Runs the segments of one run and writes into its folder."""

  def __init__(self, ready: Ready, folder: RunFolder, quiet: bool, progress: ProgressFn):
    self.ready, self.folder, self.quiet, self.progress = ready, folder, quiet, progress
    self.config, self.sim, self.ledgers = ready.config, ready.sim, ready.ledgers
    self.records, self.sent = of_run(self.config, ready.parts, ready.sim, ready.ledgers), 0
    self.drawn = _Drawn(ready.sim)
    self.checkpoints = Checkpoints(
      folder.path / 'checkpoints',
      self.config.execution.keep_checkpoints,
      private=self.sim.claims,
      run_id=folder.manifest.get('run_id'),
    )

  def restore(self) -> tuple[State, list[dict[str, Any]]]:
    """Returns the state of the newest sound checkpoint and the records up to it."""
    manifest, layout = self.folder.manifest, self.sim.setting.layout
    notes = list(self.ready.notes)
    state = self.sim.init(self.ready.parts.params)
    if self.checkpoints.numbers():  # else it was stopped before the first, and starts again
      state, refused = self.checkpoints.restore(tree.shapes(self.sim.without_noise(state)))
      if self.sim.claims:
        state = self.sim.with_noise(state)
      else:
        state = jax.device_put(state, self.sim.shardings)
      notes += refused
    before, now = manifest['execution']['devices'], layout.devices
    if before != now:
      notes.append(f'resumed on {now} device(s), not {before}: sums may differ in their last bits')
    if manifest['backend'] != jax.default_backend():
      notes.append(
        f'resumed on {jax.default_backend()}, not {manifest["backend"]}: results may differ in '
        'their last bits'
      )
    done, file = int(state.round), self.folder.path / 'metrics.jsonl'
    manifest.pop('failure', None)
    if self.ledgers:
      published = read_metrics(file)[-1:] if file.exists() else []
      self.ledgers.resume(self.folder.path, done, published[0]['round'] if published else 0)
    self.folder.note(
      **spending.facts(self.ledgers),
      warnings=list(dict.fromkeys([*manifest['warnings'], *notes])),
      resumed=[*manifest['resumed'], done],
      status='running',
    )
    return state, truncate_after(file, done)

  def go(self, state: State, records: list[dict[str, Any]]) -> Result:
    """Runs the rounds that are left, and returns the result."""
    start, total = int(state.round), self.config.rounds
    self.sent = sum(map(sent, records))
    farewell = f'ended at once; go on with: fedjax-mem resume {self.folder.path}'
    with (
      closing(self.checkpoints),
      closing(self.ready.source),
      self.progress(total, start, self.quiet) as bar,
      Interrupt(bar.note, farewell) as interrupt,
      MetricsWriter(self.folder.path / 'metrics.jsonl') as writer,
    ):
      self._open(bar)
      state = self._compile(state)
      saved, speed = -math.inf, Speed(self.config.execution.segment_seconds)
      while start < total:
        room = self.ledgers.room(start, total) if self.ledgers else total
        if not room:
          break
        count = min(speed.rounds(), self._until_evaluation(start), self.sim.max_rounds, room)
        count = self._charge(state, count)
        state, rows, seconds = self._segment(state, count)
        speed.saw(count, seconds)
        new = self.records.make(start + 1, rows, seconds)
        start += len(new)
        failure = failed(self.sim, new[-1]['round'], rows)
        last = start == total or (self.ledgers and not self.ledgers.room(start, total))
        if not failure and (start % self.config.evaluation.every == 0 or last):
          of_clients = self.ready.evaluate_clients(state.params)
          self.records.score(new[-1], self.ready.evaluate(state.params), of_clients)
        for record in new:
          self.records.mark(record)
          writer.write(record)
          self._show(bar, record)
        self._note_coverage()
        records += new
        if self.ledgers:
          self.ledgers.finish(start)
        if failure:
          self._fail(failure, state, rows)
        # The first checkpoint is early, to find out soon if the disk cannot be written.
        late = time.perf_counter() - saved >= self.config.execution.checkpoint_every_seconds
        if late or last or interrupt.asked:
          self.checkpoints.save(self.sim.without_noise(state))
          saved = time.perf_counter()
        if interrupt.asked and not last:
          self._interrupt(start)
      self._close(bar, start)
    return self._finish(state, records)

  def _charge(self, state: State, count: int) -> int:
    """Charges the next `count` rounds, or fewer, on the disk; returns how many they are."""
    if not self.ledgers:
      return count
    ids = None
    if self.ledgers.local:
      ids = self.drawn.ahead(state, count)
      count = len(ids)
    self.ledgers.charge(int(state.round) + 1, count, ids)
    self.ledgers.save(self.folder.path)
    return count

  def _close(self, bar: Progress, done: int) -> None:
    """Records and shows the privacy guarantees of the run."""
    if not self.ledgers:
      return
    if done < self.config.rounds:
      target = self.config.privacy.target_epsilon
      text = f'ended after round {done}: the next would exceed the budget of epsilon {target:g}'
      texts = dict.fromkeys([*self.folder.manifest['warnings'], text])  # once, even if resumed
      self.folder.note(warnings=list(texts))
      bar.note(text)
    self._state_privacy()
    for line in self.ledgers.statements():
      bar.note(line)

  def _state_privacy(self) -> None:
    """Writes what the rounds have cost, once they have ended, into the ledgers and the manifest."""
    if self.ledgers:
      self.ledgers.save(self.folder.path)
      self.folder.note(**spending.facts(self.ledgers, ended=True))

  def _note_coverage(self) -> None:
    said = self.records.coverage()
    if said and said['coverage'] != self.folder.manifest.get('coverage'):
      self.folder.note(**said)

  def _open(self, bar: Progress) -> None:
    for warning in self.folder.manifest['warnings']:
      bar.note(f'note: {warning}')
    bar.note(f'folder: {self.folder.path}')
    bar.note(f'compiling a round of {describe(self.sim.setting.layout)}')

  def _compile(self, state: State) -> State:
    began = time.perf_counter()
    state = jax.block_until_ready(self.sim.compile(state))
    self.folder.note(compile_seconds=round(time.perf_counter() - began, 3))
    return state

  def _show(self, bar: Progress, record: dict[str, Any]) -> None:
    self.sent += sent(record)
    known = {'bytes': self.sent} if 'bytes_up' in record else {}
    bar.update({**record, **known})
    for name in [x for x in record if x.endswith('/skipped') and record[x]]:
      layer = name.removesuffix('/skipped')
      said = '' if name in record.get('covered', (name,)) else ' (not covered)'
      bar.note(f'round {record["round"]}: skipped, too few clients were left for {layer!r}{said}')
    if record.get('zeroed'):
      bar.note(
        f'round {record["round"]}: {record["zeroed"]} updates were not finite and count as zeros '
        '(not covered)'
      )
    if 'not_finite' in record:
      names = self.ready.parts.data.clients
      who = [str(names[x] if names else x) for x in record['not_finite']]
      bar.note(f'round {record["round"]}: left out, not finite: the updates of {", ".join(who)}')

  def _segment(self, state: State, count: int) -> tuple[State, dict[str, np.ndarray], float]:
    population = self.ready.source.ahead(self.sim, state, count)
    began = time.perf_counter()
    state, rows = self.sim.run(state, count, population)
    return state, rows, time.perf_counter() - began

  def _until_evaluation(self, start: int) -> int:
    every = self.config.evaluation.every
    return min(every - start % every, self.config.rounds - start)

  def _fail(self, reason: str, state: State, rows: dict[str, np.ndarray]) -> None:
    if rows['finite'][-1]:
      self.checkpoints.save(self.sim.without_noise(state))
    self._state_privacy()
    self.folder.note(status='failed', failure=reason)
    good = self.checkpoints.numbers()
    kept = (
      f'the last good checkpoint is that of round {good[0]}' if good else 'no checkpoint is left'
    )
    raise RunFailed(
      f'{reason}; {kept}, in {self.folder.path}. A smaller client.learning_rate or '
      'server.learning_rate is the usual remedy.'
    )

  def _interrupt(self, done: int) -> None:
    self._state_privacy()
    self.folder.note(status='interrupted', rounds_done=done)
    raise Interrupted(
      f'stopped after round {done}; go on with: fedjax-mem resume {self.folder.path}'
    )

  def _finish(self, state: State, records: list[dict[str, Any]]) -> Result:
    return finish(self.ready, self.folder, state, records)


def failed(sim: Simulation, last: int, rows: dict[str, np.ndarray]) -> str | None:
  """Returns why a run cannot go on after a segment, or None.

  Args:
    sim: the compiled rounds.
    last: number of the last round of the segment, 1-based.
    rows: metrics of the segment, [R, ...] each.
  """
  if not rows['finite'][-1]:
    return f"the server's parameters are not finite after round {last}"
  empty = (rows['clients'] == 0) & (rows['not_finite'] >= 0).any(1)
  if empty.any() and not sim.claims:  # under a claim it would tell of single clients
    return (
      f'no client of round {last - len(empty) + 1 + int(np.argmax(empty))} sent a finite update'
    )
  return None


class _Drawn:
  """The clients that the next rounds draw, for ledgers that count the rounds of each client."""

  def __init__(self, sim: Simulation):
    self._sim, self._first = sim, 0
    # After a round with feedback only one more is known. All else is drawn in blocks of one length,
    # so that one program is compiled.
    self._block = sim.max_rounds if sim.setting.layers.blind else 1
    self._ids = np.zeros((0, 0), np.int32)

  def ahead(self, state: State, count: int) -> np.ndarray:
    """Returns the ids [count, C] of the next rounds, padding included; [1, C] under feedback."""
    at = int(state.round) - self._first
    if at < 0 or at + count > len(self._ids):
      self._first, at = int(state.round), 0
      self._ids = np.asarray(self._sim.cohorts(state, self._block))
    return self._ids[at : at + count]


class Speed:
  """Chooses the number of rounds in a segment from the time of the rounds before."""

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._last = 0
    self._round: float | None = None

  def saw(self, rounds: int, seconds: float) -> None:
    """Records the time of a segment."""
    self._round, self._last = seconds / rounds, rounds

  def rounds(self) -> int:
    """Returns the rounds of the next segment: first one, later at most four times the last."""
    if self._round is None:
      return 1
    fitting = math.floor(self._seconds / max(self._round, 1e-9))
    return max(1, min(fitting, 4 * self._last))
