"""The segments of a run: between them evaluation, records and checkpoints.

Under a claim of privacy the order is: the ledger is charged and on the disk, the segment runs, its
records are on the disk, a checkpoint is saved. So a run that is killed anywhere has never published
a round that its ledger does not count.

Every process of a cluster runs the same segments. What depends on time, a budget or a signal is
decided by process 0, which alone writes (`runner/cluster.py`).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import jax
import numpy as np

from fedjax_mem.config.load import to_dict
from fedjax_mem.core import State, tree
from fedjax_mem.engine import describe, personal
from fedjax_mem.engine.mesh import of_model
from fedjax_mem.report.runs import flatten
from fedjax_mem.report.tracker import MetricsWriter, reach, truncate_after
from fedjax_mem.runner import ledgers as spending
from fedjax_mem.runner import notes, restoring
from fedjax_mem.runner.checkpoint import Checkpoints
from fedjax_mem.runner.cluster import Cluster
from fedjax_mem.runner.ending import Result, finish
from fedjax_mem.runner.folder import RunFolder
from fedjax_mem.runner.following import NoWriter, Silent
from fedjax_mem.runner.interrupt import INTERRUPTED, Interrupt
from fedjax_mem.runner.prepare import Ready
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


class Rounds:
  """Runs the segments of one run and writes into its folder."""

  def __init__(
    self,
    ready: Ready,
    folder: RunFolder,
    trackers: Sequence[Tracker],
    quiet: bool,
    progress: ProgressFn,
    cluster: Cluster,
  ):
    self.ready, self.folder, self.quiet, self.cluster = ready, folder, quiet, cluster
    cluster.begin()
    leads = cluster.leads
    self.progress: ProgressFn = progress if leads else Silent
    self.trackers, self.times = trackers if leads else (), Times()
    self.config, self.sim = ready.config, ready.sim
    self.ledgers = ready.ledgers if leads else None
    self.records, self.sent = of_run(self.config, ready.parts, ready.sim, self.ledgers), 0
    self.drawn = Drawn(ready.sim)
    self.checkpoints = Checkpoints(
      folder.path / 'checkpoints',
      self.config.execution.keep_checkpoints,
      private=self.sim.claims,
      run_id=folder.manifest.get('run_id'),
      cluster=cluster,
    )

  def restore(self) -> tuple[State, list[dict[str, Any]]]:
    """Returns the state of the newest sound checkpoint and the records up to it."""
    manifest, layout = self.folder.manifest, self.sim.setting.layout
    said = list(self.ready.notes)
    file = self.folder.path / 'metrics.jsonl'
    records = restoring.records(file) if self.cluster.leads else []
    last = self.cluster.agree(reach(records))
    state = self.sim.init(self.ready.parts.params)
    if self.cluster.agree(bool(self.checkpoints.numbers())):
      # Else it was stopped before the first, and starts again.
      like = tree.shapes(self.sim.without_noise(state))
      where = self.sim.without_noise(self.sim.shardings)
      state, refused = self.checkpoints.restore(like, lambda state: int(state.round) <= last, where)
      if self.sim.claims:
        state = self.sim.with_noise(state)
      said += refused
    before, now = manifest['execution']['devices'], layout.mesh.size
    if before != now:
      said.append(f'resumed on {now} device(s), not {before}: sums may differ in their last bits')
    shared, now = manifest['execution'].get('model_devices', 1), of_model(layout.mesh)
    if shared != now:
      said.append(
        f'resumed with parameters on {now} device(s), not {shared}: results may differ in their '
        'last bits'
      )
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
    return state, truncate_after(file, done) if self.cluster.leads else []

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
      self._writer() as writer,
      self._followed(bar, start) as trackers,
    ):
      self._open(bar)
      state = self._compile(restored)
      saved, speed = -math.inf, Speed(self.config.execution.segment_seconds)
      while start < total:
        room = self.ledgers.room(start, total) if self.ledgers else total
        count = min(speed.rounds(), self._until_evaluation(start), self.sim.max_rounds, room)
        count = self.cluster.agree(count)
        if not count:
          break
        count = self._charge(state, count)
        self.cluster.at('round', start + 1)
        state, rows, seconds = self._segment(state, count)
        speed.saw(count, seconds)
        new = self.records.make(start + 1, rows, seconds)
        start += len(new)
        failure = failed(self.sim, new[-1]['round'], rows)
        ends = start == total or bool(self.ledgers and not self.ledgers.room(start, total))
        last = self.cluster.agree(ends)
        scored = not failure and (start % self.config.evaluation.every == 0 or last)
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
        asked = self._asked(interrupt)  # once: a signal may come between two looks
        asked = self.cluster.agree(asked)
        save = self.cluster.agree(late or last or asked is not None)
        if save:
          writer.sync()
          self._save(state)
          saved = time.perf_counter()
          trackers.checkpoint(start)
        if asked and not last:
          self._interrupt(start, *asked)
      self._close(bar, start)
    return self._finish(state, records)

  def _writer(self) -> MetricsWriter | NoWriter:
    return MetricsWriter(self.folder.path / 'metrics.jsonl') if self.cluster.leads else NoWriter()

  def _save(self, state: State) -> None:
    self.cluster.at('checkpoint')
    with self.times('checkpoints'):
      self.checkpoints.save(self.sim.without_noise(state))

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
    self.cluster.at('evaluation')
    with self.times('evaluation'):
      layers = self.ready.parts.layers
      params = self.ready.sim.scored(state)
      of_clients = self.ready.evaluate_clients(params, personal.rows(layers, state))
      self.records.score(record, self.ready.evaluate(params), of_clients)

  def _charge(self, state: State, count: int) -> int:
    """Charges the next `count` rounds, or fewer, on the disk; returns how many they are."""
    if not self.ready.ledgers:
      return count
    ids = None
    if self.ready.ledgers.local:
      ids = self.drawn.ahead(state, count)
      count = len(ids)
    if self.ledgers:
      self.ledgers.charge(int(state.round) + 1, count, ids)
      self.ledgers.save(self.folder.path)
    return self.cluster.agree(count)  # no process runs a round that is not charged on the disk

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
      self._save(state)
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

  def _asked(self, interrupt: Interrupt) -> list[Any] | None:
    """Returns, on process 0, (words, code) of a signal that it or another process has heard."""
    by = '' if self.cluster.leads else f' to process {self.cluster.process}'
    heard = [f'{interrupt.words}{by}', interrupt.code] if interrupt.asked else None
    return self.cluster.asked(heard)

  def _interrupt(self, done: int, words: str, code: int) -> None:
    self._state_privacy()
    self.folder.note(status='interrupted', rounds_done=done, **self._spent())
    raise Interrupted(
      f'{words}: stopped after round {done}, which is in a checkpoint; go on with: '
      f'fedjax-mem resume {self.folder.path}',
      code,
    )

  def _spent(self) -> dict[str, Any]:
    return {'time': self.times.since(self.folder.manifest.get('time', {}))}

  def _finish(self, state: State, records: list[dict[str, Any]]) -> Result:
    self.cluster.at('ending')
    self.folder.note(**self._spent())
    return finish(self.ready, self.folder, state, records, self.cluster.leads)
