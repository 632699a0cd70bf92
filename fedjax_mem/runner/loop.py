"""The host loop: segments of rounds, and between them evaluation, records and checkpoints.

Under a claim of privacy the order is: the ledger is charged and on the disk, the segment runs, its
records are on the disk, a checkpoint is saved. So a run that is killed anywhere has never published
a round that its ledger does not count.
"""

import contextlib
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import jax
import numpy as np

from fedjax_mem.config.load import Config, to_dict
from fedjax_mem.config.start import pinned
from fedjax_mem.core import State, keys, tree
from fedjax_mem.engine import describe, personal
from fedjax_mem.report.runs import flatten
from fedjax_mem.report.tracker import MetricsWriter, reach, truncate_after
from fedjax_mem.runner import flags, notes, restoring, secret
from fedjax_mem.runner import ledgers as spending
from fedjax_mem.runner import trackers as tracking
from fedjax_mem.runner.checkpoint import Checkpoints
from fedjax_mem.runner.ending import Result, finish
from fedjax_mem.runner.folder import RunFolder, create
from fedjax_mem.runner.interrupt import INTERRUPTED, Interrupt
from fedjax_mem.runner.prepare import Given, Ready, facts, get_ready, keeps_root
from fedjax_mem.runner.progress import Progress
from fedjax_mem.runner.records import of_run
from fedjax_mem.runner.segments import Drawn, Speed, failed
from fedjax_mem.runner.times import Times
from fedjax_mem.runner.trackers import About, Tracker, Trackers
from fedjax_mem.runner.traffic import sent

# (rounds, rounds done before, quiet) -> what shows the progress
ProgressFn = Callable[[int, int, bool], Progress]


class RunFailed(RuntimeError):
  """A run that cannot go on; the message says why, in which round, and what is left."""


class Interrupted(KeyboardInterrupt):
  """A run that a signal ended after a checkpoint; the message says how to go on.

  Attributes:
    code: exit code of a process that ends so: 128 and the number of the signal.
  """

  def __init__(self, words: str = '', code: int = INTERRUPTED):
    """Takes the message and the exit code."""
    super().__init__(words)
    self.code = code


@keys.fixed()
def run(
  config: Config,
  out: str | os.PathLike[str] = 'runs',
  *,
  params: Any = None,
  data: Given = None,
  data_dir: str | None = None,
  trackers: Sequence[Tracker] = (),
  quiet: bool = False,
  progress: ProgressFn = Progress,
) -> Result:
  """Runs an experiment and returns its result; everything is in the run's folder as well.

  >>> import contextlib, tempfile
  >>> config = fm.load_config('quickstart', ['rounds=1', 'data.num_clients=10'])
  >>> with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(None):
  ...   result = run(config, out, quiet=True)
  >>> {'train_loss', 'test_accuracy', 'bytes_up'} <= set(result.metrics[-1])
  True

  Args:
    config: the experiment.
    out: folder in which the run's folder `<name>-<hash>` is made.
    params: parameters to start from, a tree like the model's; None: `model.init`, or a draw.
    data: the data of an experiment whose `data.name` is 'given', before or after its partition.
    data_dir: where prepared data sets are; None: the environment or the default decides.
    trackers: get its records, besides those of `tracking.use`.
    quiet: report progress by plain lines, without a bar.
    progress: (rounds, rounds done before, quiet) -> what shows the progress.

  Raises:
    ValueError: bad input; nothing has run.
    RunFailed: the run cannot go on; the folder holds the last good checkpoint.
    Interrupted: by Ctrl-C, SIGTERM or SIGHUP, after a checkpoint.
    DiskFull: the disk is full; the folder holds the last good checkpoint.
  """
  config, start = pinned(config, params)
  ready = get_ready(config, data_dir, {}, start, data)
  made = [*tracking.asked(config.tracking), *trackers]
  folder = create(ready.config, out, ready.sim.root if keeps_root(ready) else None, ready.start)
  with folder.locked():
    folder.note(data_dir=data_dir and str(pathlib.Path(data_dir).absolute()), **facts(ready))
    return _Loop(ready, folder, made, quiet, progress).go(None, [])


@keys.fixed()
def resume(
  path: str | os.PathLike[str],
  *,
  data: Given = None,
  data_dir: str | None = None,
  trackers: Sequence[Tracker] = (),
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
    trackers: as in `run`.
    quiet: report progress by plain lines, without a bar.
    progress: as in `run`.

  Raises:
    ValueError: not a run's folder, a run that is finished, in use, on real machines or of another
      configuration, one whose files are damaged, whose secret root is missing or of another run,
      or that began under another value of a flag of JAX that matters.
    RunFailed: the run cannot go on.
    CheckpointError: no checkpoint is sound.
    Interrupted: by Ctrl-C, SIGTERM or SIGHUP, after a checkpoint.
    DiskFull: the disk is full.
  """
  folder = RunFolder(pathlib.Path(path))
  with folder.locked():
    said = folder.manifest
    folder.check_unfinished()
    folder.check_config()
    noted = flags.check(said['flags']) if 'flags' in said else []
    where, how = data_dir or said.get('data_dir'), said.get('execution', {})
    digest = said.get('data_sha256')
    ready = get_ready(folder.config, where, how, folder.start(), data, digest)
    if keeps_root(ready):
      root = secret.read(folder.path, said.get('run_id'))
      ready = ready._replace(sim=ready.sim.with_root(root))
    if 'execution' not in said:  # killed before its first round
      folder.note(**facts(ready))
    made = [*tracking.asked(folder.config.tracking), *trackers]
    loop = _Loop(ready._replace(notes=[*ready.notes, *noted]), folder, made, quiet, progress)
    return loop.go(*loop.restore())


class _Loop:
  """Runs the segments of one run and writes into its folder."""

  def __init__(
    self,
    ready: Ready,
    folder: RunFolder,
    trackers: Sequence[Tracker],
    quiet: bool,
    progress: ProgressFn,
  ):
    self.ready, self.folder, self.quiet, self.progress = ready, folder, quiet, progress
    self.trackers, self.times = trackers, Times()
    self.config, self.sim, self.ledgers = ready.config, ready.sim, ready.ledgers
    self.records, self.sent = of_run(self.config, ready.parts, ready.sim, ready.ledgers), 0
    self.drawn = Drawn(ready.sim)
    self.checkpoints = Checkpoints(
      folder.path / 'checkpoints',
      self.config.execution.keep_checkpoints,
      private=self.sim.claims,
      run_id=folder.manifest.get('run_id'),
    )

  def restore(self) -> tuple[State, list[dict[str, Any]]]:
    """Returns the state of the newest sound checkpoint and the records up to it."""
    manifest, layout = self.folder.manifest, self.sim.setting.layout
    said = list(self.ready.notes)
    state, file = self.sim.init(self.ready.parts.params), self.folder.path / 'metrics.jsonl'
    records = restoring.records(file)
    if self.checkpoints.numbers():  # else it was stopped before the first, and starts again
      last = reach(records)
      state, refused = self.checkpoints.restore(
        tree.shapes(self.sim.without_noise(state)), lambda state: int(state.round) <= last
      )
      if self.sim.claims:
        state = self.sim.with_noise(state)
      else:
        state = jax.device_put(state, self.sim.shardings)
      said += refused
    before, now = manifest['execution']['devices'], layout.devices
    if before != now:
      said.append(f'resumed on {now} device(s), not {before}: sums may differ in their last bits')
    if manifest['backend'] != jax.default_backend():
      said.append(
        f'resumed on {jax.default_backend()}, not {manifest["backend"]}: results may differ in '
        'their last bits'
      )
    done = int(state.round)
    said += restoring.lost(records, done)
    manifest.pop('failure', None)
    if self.ledgers:
      self.ledgers.resume(self.folder.path, done, restoring.published(records))
    self.folder.note(
      **spending.facts(self.ledgers),
      warnings=list(dict.fromkeys([*manifest['warnings'], *said])),
      resumed=[*manifest['resumed'], done],
      status='running',
    )
    return state, truncate_after(file, done)

  def go(self, restored: State | None, records: list[dict[str, Any]]) -> Result:
    """Runs the rounds that are left, of a new run all, and returns the result."""
    start, total = int(restored.round) if restored else 0, self.config.rounds
    self.sent = sum(map(sent, records))
    farewell = f'ended at once; go on with: fedjax-mem resume {self.folder.path}'
    with (
      closing(self.checkpoints),
      closing(self.ready.source),
      self.progress(total, start, self.quiet) as bar,
      Interrupt(bar.note, farewell) as interrupt,
      MetricsWriter(self.folder.path / 'metrics.jsonl') as writer,
      self._followed(bar, start) as trackers,
    ):
      self._open(bar)
      state = self._compile(restored)
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
        scored = not failure and (start % self.config.evaluation.every == 0 or bool(last))
        if scored:
          self._score(state, new[-1])
        for record in new:
          self.records.mark(record)
          writer.write(record)
          self._show(bar, record)
        self._note_coverage()
        trackers.segment(new, scored)
        records += new
        if self.ledgers:
          self.ledgers.finish(start)
        if failure:
          writer.sync()
          self._fail(failure, state, rows)
        # The first checkpoint is early, to find out soon if the disk cannot be written.
        late = time.perf_counter() - saved >= self.config.execution.checkpoint_every_seconds
        if late or last or interrupt.asked:
          writer.sync()
          with self.times('checkpoints'):
            self.checkpoints.save(self.sim.without_noise(state))
          saved = time.perf_counter()
          trackers.checkpoint(start)
        if interrupt.asked and not last:
          self._interrupt(start, interrupt)
      self._close(bar, start)
    return self._finish(state, records)

  @contextlib.contextmanager
  def _followed(self, bar: Progress, done: int) -> Iterator[Trackers]:
    settings = dict(flatten(to_dict(self.config)))
    if self.sim.claims:
      settings.pop('noise_seed', None)
    path, run_id = self.folder.path, self.folder.manifest.get('run_id', '')
    about = About(path.name, run_id, path, settings, self.config.rounds, done)
    trackers = Trackers(self.trackers, bar.note, self.config.tracking.uncovered)
    with trackers.following(about):
      yield trackers

  def _score(self, state: State, record: dict[str, Any]) -> None:
    with self.times('evaluation'):
      layers = self.ready.parts.layers
      params = self.ready.sim.scored(state)
      of_clients = self.ready.evaluate_clients(params, personal.rows(layers, state))
      self.records.score(record, self.ready.evaluate(params), of_clients)

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

  def _compile(self, state: State | None) -> State:
    began = time.perf_counter()
    if state is None:  # of zeros, and thrown away: the initial parameters are still being drawn
      zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.ready.parts.like)
      jax.block_until_ready(self.sim.compile(self.sim.init(zeros)))
      state = self.sim.init(self.ready.parts.params)
    else:
      state = jax.block_until_ready(self.sim.compile(state))
    self.folder.note(compile_seconds=round(time.perf_counter() - began, 3))
    return state

  def _show(self, bar: Progress, record: dict[str, Any]) -> None:
    self.sent += sent(record)
    known = {'bytes': self.sent} if 'bytes_up' in record else {}
    bar.update({**record, **known})
    for line in notes.of_round(record, self.ready.parts.data.clients):
      bar.note(line)

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

  def _interrupt(self, done: int, interrupt: Interrupt) -> None:
    self._state_privacy()
    self.folder.note(status='interrupted', rounds_done=done, **self._spent())
    raise Interrupted(
      f'{interrupt.words}: stopped after round {done}, which is in a checkpoint; go on with: '
      f'fedjax-mem resume {self.folder.path}',
      interrupt.code,
    )

  def _spent(self) -> dict[str, Any]:
    return {'time': self.times.since(self.folder.manifest.get('time', {}))}

  def _finish(self, state: State, records: list[dict[str, Any]]) -> Result:
    self.folder.note(**self._spent())
    return finish(self.ready, self.folder, state, records)
