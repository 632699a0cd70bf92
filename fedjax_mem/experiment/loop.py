"""The host loop: segments of rounds, and between them evaluation, records and checkpoints."""

import dataclasses
import math
import os
import pathlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from fedjax_mem.core import State, tree
from fedjax_mem.engine import Execution, Simulation, describe, evaluator, simulate, table_bytes
from fedjax_mem.engine.mesh import replicated
from fedjax_mem.experiment import devices, examples
from fedjax_mem.experiment.build import Parts, build
from fedjax_mem.experiment.checkpoint import Checkpoints
from fedjax_mem.experiment.config import Config
from fedjax_mem.experiment.folder import RunFolder, create
from fedjax_mem.experiment.progress import Progress
from fedjax_mem.report import plots
from fedjax_mem.report.html import write_report
from fedjax_mem.report.tracker import MetricsWriter, truncate_after

MAX_SEGMENT = 256  # rounds; longer segments would save nothing, their metrics take memory
_OWN = ('selected', 'clients', 'examples', 'not_finite', 'finite')


class RunFailed(RuntimeError):
  """A run that cannot go on; the message says why, in which round, and what is left."""


class Interrupted(KeyboardInterrupt):
  """A run that was interrupted and has kept a checkpoint; the message says how to go on."""


@dataclasses.dataclass(frozen=True)
class Result:
  """What a run gives.

  Attributes:
    params: the server's parameters after the last round.
    metrics: one record a round, as in `metrics.jsonl`.
    folder: of the run.
  """

  params: Any
  metrics: list[dict[str, Any]]
  folder: pathlib.Path


def run(
  config: Config,
  out: str | os.PathLike = 'runs',
  *,
  data_dir: str | None = None,
  quiet: bool = False,
) -> Result:
  """Runs an experiment and returns its result; everything is in the run's folder as well.

  Args:
    config: the experiment.
    out: folder in which the run's folder `<name>-<hash>` is made.
    data_dir: where prepared data sets are; None: the environment or the default decides.
    quiet: no progress bar.

  Raises:
    ValueError: bad input; nothing has run.
    RunFailed: the run cannot go on; the folder holds the last good checkpoint.
    Interrupted: by Ctrl-C, after a checkpoint.
  """
  note = devices.prepare(config.execution.devices)
  parts = build(config, data_dir)
  sim, source = _simulation(config, parts, None)
  folder = create(config, out)
  with folder.locked():
    _describe(folder, config, parts, sim)
    return _Loop(config, parts, sim, source, folder, quiet, note).go(sim.init(parts.params), [])


def resume(path: str | os.PathLike, *, data_dir: str | None = None, quiet: bool = False) -> Result:
  """Goes on with an unfinished run from its newest sound checkpoint, as if it had not stopped.

  Args:
    path: the run's folder.
    data_dir: where prepared data sets are; None: the environment or the default decides.
    quiet: no progress bar.

  Raises:
    ValueError: not a run's folder, or a run that is finished or in use.
    RunFailed: the run cannot go on.
    Interrupted: by Ctrl-C, after a checkpoint.
  """
  folder = RunFolder(pathlib.Path(path))
  with folder.locked():
    if folder.manifest.get('status') == 'finished':
      raise ValueError(f'the run in {folder.path} must be unfinished to resume it: it is finished.')
    config = folder.config
    note = devices.prepare(config.execution.devices)
    parts = build(config, data_dir)
    sim, source = _simulation(config, parts, folder.manifest.get('execution'))
    loop = _Loop(config, parts, sim, source, folder, quiet, note)
    return loop.go(*loop.restore())


def _simulation(
  config: Config, parts: Parts, recorded: dict[str, Any] | None
) -> tuple[Simulation, examples.Source]:
  """Returns the simulation and the source of its examples, with the recorded execution if any."""
  wanted = config.execution
  chosen = Execution(mode=wanted.mode, chunk=wanted.chunk, devices=wanted.devices)
  longest = min(wanted.max_segment_rounds or MAX_SEGMENT, config.evaluation.every, config.rounds)
  if recorded:
    there = len(jax.devices())
    count = recorded['devices'] if recorded['devices'] <= there else 'auto'
    chosen = Execution(mode=recorded['mode'], chunk=recorded['chunk'], devices=count)
    longest = recorded['max_rounds']
  source = examples.source(parts.data, parts.layers, wanted.stream_above_mb, longest)
  sim = simulate(
    parts.layers,
    parts.params,
    source.population,
    seed=config.seed,
    execution=chosen,
    max_rounds=source.max_rounds,
    shape=source.shape,
    transforms=(parts.data.preprocess,),
  )
  return sim, source


def _describe(folder: RunFolder, config: Config, parts: Parts, sim: Simulation) -> None:
  """Writes into the manifest what is known before the first round."""
  layout = sim.setting.layout
  mode = 'loop' if layout.looped else 'chunk'
  folder.note(
    devices=[str(d.device_kind) for d in layout.mesh.devices.flat],
    backend=jax.default_backend(),
    execution={
      'mode': mode,
      'chunk': None if layout.looped else layout.chunk,
      'devices': layout.devices,
      'max_rounds': sim.max_rounds,
      'words': describe(layout),
    },
    parameters=sum(x.size for x in jax.tree.leaves(parts.params)),
    clients=parts.data.num_clients,
    examples=int(parts.data.counts.sum()),
    client_state_bytes=table_bytes(sim.setting, sim.params, sim.population),
    resumed=[],
  )
  if parts.data.unused_labels:
    folder.warn(f'no client holds examples of the labels {list(parts.data.unused_labels)}')


class _Loop:
  """Runs the segments of one run and keeps its folder."""

  def __init__(
    self,
    config: Config,
    parts: Parts,
    sim: Simulation,
    source: examples.Source,
    folder: RunFolder,
    quiet: bool,
    note: str | None,
  ):
    self.config, self.parts, self.sim, self.source = config, parts, sim, source
    self.folder, self.quiet = folder, quiet
    self.checkpoints = Checkpoints(folder.path / 'checkpoints', config.execution.keep_checkpoints)
    self.evaluate = evaluator(
      lambda params, batch: parts.model.metrics(params, parts.data.preprocess(batch)),
      parts.data.test,
      batch_size=config.evaluation.batch_size,
      mesh=sim.setting.layout.mesh,
    )
    self.stop = threading.Event()
    if note:
      self.folder.warn(note)

  def restore(self) -> tuple[State, list[dict[str, Any]]]:
    """Returns the newest sound checkpoint's state and the records up to it."""
    refused: list[str] = []
    state = self.sim.init(self.parts.params)
    if self.checkpoints.numbers():  # else it was stopped before the first: it starts anew
      state, refused = self.checkpoints.restore(tree.shapes(state))
      state = jax.device_put(state, replicated(self.sim.setting.layout.mesh))
    recorded, there = self.folder.manifest['execution']['devices'], self.sim.setting.layout.devices
    if recorded != there:
      refused.append(
        f'resumed on {there} device(s), not {recorded}: sums may differ in their last bits'
      )
    for line in refused:
      self.folder.warn(line)
    done = int(state.round)
    self.folder.note(resumed=[*self.folder.manifest.get('resumed', []), done], status='running')
    return state, truncate_after(self.folder.path / 'metrics.jsonl', done)

  def go(self, state: State, records: list[dict[str, Any]]) -> Result:
    """Runs the rounds that are left, and returns the result."""
    start, total = int(state.round), self.config.rounds
    began = time.perf_counter()
    with (
      self._interruptible(),
      Progress(total, start, self.quiet) as bar,
      MetricsWriter(self.folder.path / 'metrics.jsonl') as writer,
    ):
      for warning in self.folder.manifest['warnings']:
        bar.note(warning)
      state = jax.block_until_ready(self.sim.compile(state))
      self.folder.note(compile_seconds=round(time.perf_counter() - began, 3))
      saved, speed = time.perf_counter(), _Speed(self.config.execution.segment_seconds)
      while start < total:
        count = min(speed.rounds(), self._until_evaluation(start), self.sim.max_rounds)
        state, rows, seconds = self._segment(state, count)
        speed.saw(count, seconds)
        new = self._records(start, rows, seconds)
        start += len(new)
        failure = self._failure(new[-1], rows)
        if not failure and (start % self.config.evaluation.every == 0 or start == total):
          scores = self.evaluate(state.params)
          new[-1] |= {f'test_{name}': value for name, value in scores.items()}
        for record in new:
          writer.write(record)
          bar.update(record)
        records += new
        if failure:
          self._fail(failure, state, rows)
        late = time.perf_counter() - saved >= self.config.execution.checkpoint_every_seconds
        if late or start == total or self.stop.is_set():
          self.checkpoints.save(state)
          saved = time.perf_counter()
        if self.stop.is_set() and start < total:
          self._interrupt(start)
    return self._finish(state, records)

  def _segment(self, state: State, count: int) -> tuple[State, dict[str, np.ndarray], float]:
    population = self.source.ahead(self.sim, state, count)
    began = time.perf_counter()
    state, rows = self.sim.run(state, count, population)
    return state, rows, time.perf_counter() - began

  def _until_evaluation(self, start: int) -> int:
    every = self.config.evaluation.every
    return min(every - start % every, self.config.rounds - start)

  def _records(self, start: int, rows: dict[str, np.ndarray], seconds: float) -> list[dict]:
    """Returns one record a round from the stacked metrics of a segment."""
    count = len(rows['clients'])
    records = []
    for i in range(count):
      record: dict[str, Any] = {'round': start + i + 1}
      for name, x in rows.items():
        if name not in _OWN:
          # The algorithm is what a round is about: its metrics go by their plain names.
          record[name.removeprefix('algorithm/')] = x[i].item()
      record |= {name: rows[name][i].item() for name in ('clients', 'examples')}
      dropped = rows['not_finite'][i]
      dropped = sorted(int(x) for x in dropped[dropped >= 0])
      if dropped:
        record['dropped'] = [self._client(x) for x in dropped]
      record['seconds'] = seconds / count
      records.append(record)
    return records

  def _client(self, number: int) -> Any:
    names = self.parts.data.clients
    return names[number] if names else number

  def _failure(self, last: dict[str, Any], rows: dict[str, np.ndarray]) -> str | None:
    """Returns why the run cannot go on after a segment, or None."""
    if not rows['finite'][-1]:
      return f"the server's parameters are not finite after round {last['round']}"
    empty = (rows['clients'] == 0) & (rows['not_finite'] >= 0).any(1)
    if empty.any():
      number = last['round'] - len(empty) + 1 + int(np.argmax(empty))
      return f'no client of round {number} sent a finite update'
    return None

  def _fail(self, reason: str, state: State, rows: dict[str, np.ndarray]) -> None:
    if rows['finite'][-1]:
      self.checkpoints.save(state)
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
    self.folder.note(status='interrupted', rounds_done=done)
    raise Interrupted(
      f'stopped after round {done}; go on with: fedjax-mem resume {self.folder.path}'
    )

  def _finish(self, state: State, records: list[dict[str, Any]]) -> Result:
    self.checkpoints.close()
    self.source.close()
    self.folder.note(status='finished', rounds_done=int(state.round))
    plots.save(plots.learning_curves(self.folder.path), self.folder.path / 'learning_curve.png')
    write_report(self.folder.path, self.folder.path / 'report.html')
    return Result(jax.device_get(state.params), records, self.folder.path)

  @contextmanager
  def _interruptible(self) -> Iterator[None]:
    """Makes the first Ctrl-C end the run after its segment; the second ends it at once."""
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: Any) -> None:
      del number, frame
      self.stop.set()
      signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
      yield
    finally:
      signal.signal(signal.SIGINT, before)


class _Speed:
  """How many rounds fill a segment, from how long the rounds so far took."""

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._last = 0
    self._round: float | None = None

  def saw(self, rounds: int, seconds: float) -> None:
    """Notes a segment."""
    self._round, self._last = seconds / rounds, rounds

  def rounds(self) -> int:
    """Returns the rounds of the next segment: at first one, then at most four times the last."""
    if self._round is None:
      return 1
    fitting = math.floor(self._seconds / max(self._round, 1e-9))
    return max(1, min(fitting, 4 * self._last))
