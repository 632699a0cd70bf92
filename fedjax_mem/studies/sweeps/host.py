"""Lanes of one program: the host loop over segments of rounds of all of them.

The order is that of a run alone: ledgers are charged and on the disk, the segment runs, its records
are written, a checkpoint is saved. A checkpoint holds the states of all lanes, without their noise.
"""

import math
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np

from fedjax_mem.core import State, tree
from fedjax_mem.engine import lanes
from fedjax_mem.runner.checkpoint import Checkpoints
from fedjax_mem.runner.interrupt import Interrupt
from fedjax_mem.runner.loop import Interrupted
from fedjax_mem.runner.progress import Progress
from fedjax_mem.runner.segments import Speed
from fedjax_mem.studies.sweeps.log import Log
from fedjax_mem.studies.sweeps.planning import Planned


class Beside:
  """Runs a group of lanes that are one program."""

  def __init__(
    self,
    group: Sequence[Planned],
    out: pathlib.Path,
    sweep: pathlib.Path,
    checkpoints: pathlib.Path,
    run_id: str,
    at_once: int | None,
  ):
    """Opens the folders of the lanes.

    Args:
      group: the lanes.
      out: folder in which those of the lanes are.
      sweep: folder of the sweep.
      checkpoints: folder of the group's checkpoints.
      run_id: id of the sweep: checkpoints of another are refused.
      at_once: lanes side by side on a device; None: by the size of the model.
    """
    self.logs = [Log(x, out, sweep) for x in group]
    self._sweep = sweep
    config = group[0].point.config
    self._execution, self._every = config.execution, config.evaluation.every
    found = [x.planned.lane for x in self.logs]
    made = [x for x in found if x is not None]
    longest = min(x.sim.max_rounds for x in made)
    devices = self._execution.devices
    self.lanes = lanes.together(made, longest, at_once, devices)
    self._checkpoints = Checkpoints(
      checkpoints, self._execution.keep_checkpoints, private=made[0].sim.claims, run_id=run_id
    )
    self.active = np.ones(len(made), bool)

  @property
  def words(self) -> str:
    """How the lanes run, in words."""
    size, own = self.lanes.size, min(self.lanes.at_once, -(-self.lanes.size // self.lanes.devices))
    how = 'one after another' if own == 1 else f'{own} side by side'
    return f'{size} lanes in one program, {how} on each of {self.lanes.devices} device(s)'

  def go(self, bar: Progress, recount: Callable[[], tuple[int, int]]) -> None:
    """Runs the rounds that are left.

    Args:
      bar: of the whole sweep.
      recount: function that returns the rounds of the sweep that are done, and all.

    Raises:
      Interrupted: by Ctrl-C, after a checkpoint.
    """
    farewell = f'ended at once; go on with: fedjax-mem resume {self._sweep}'
    with ExitStack() as stack:
      stack.callback(self._checkpoints.close)
      for log in self.logs:
        stack.callback(log.close)
      interrupt = stack.enter_context(Interrupt(bar.note, farewell))
      state = self._restore()
      bar.expect(*recount())
      for i in self._on():
        self._end_if_done(i, state, bar)
      if self.active.any():
        bar.note(f'compiling a round of {self.words}')
        state = self.lanes.compile(state)
      saved, speed = -math.inf, Speed(self._execution.segment_seconds)
      while self.active.any():
        state = self._segment(state, speed, bar)
        late = time.perf_counter() - saved >= self._execution.checkpoint_every_seconds
        if late or interrupt.asked or not self.active.any():
          self._save(state)
          saved = time.perf_counter()
        if interrupt.asked and self.active.any():
          raise Interrupted(
            f'{interrupt.words}: stopped after round {int(state.round)}, which is in a checkpoint; '
            f'go on with: fedjax-mem resume {self._sweep}',
            interrupt.code,
          )
    shutil.rmtree(self._checkpoints.folder, ignore_errors=True)

  def _segment(self, state: State, speed: Speed, bar: Progress) -> State:
    """Returns the state after a segment; a lane that has ended is not active any more."""
    at, on = int(state.round), self._on()
    room = min(self.logs[i].room() for i in on)
    count = min(speed.rounds(), self._every - at % self._every, room, self.lanes.max_rounds)
    ids = self.lanes.cohorts(state)
    if ids is not None:
      count = min(count, ids.shape[1])
    for i in on:
      self.logs[i].charge(count, None if ids is None else ids[i, :count])
    began = time.perf_counter()
    state, rows, done = self.lanes.run(state, count, self.active)
    seconds = time.perf_counter() - began
    speed.saw(count, seconds)
    params = jax.device_get(state.params)
    for i in on:
      log, own = self.logs[i], jax.tree.map(lambda x, i=i: x[i], params)
      mine = {name: x[i, : done[i]] for name, x in rows.items()}
      ends = log.room() == done[i]
      score = bool(ends or (at + done[i]) % self._every == 0)
      records, failure = log.write(mine, seconds / len(on), own, score)
      for record in records:
        bar.update({'seconds': record['seconds']})
      if failure:
        self._end(i, failure, own, bar)
        bar.note(f'{log.planned.point.label}, seed {log.planned.point.seed}: {failure}')
      else:
        self._end_if_done(i, state, bar)
    return state

  def _on(self) -> list[int]:
    found: list[int] = np.flatnonzero(self.active).tolist()
    return found

  def _end_if_done(self, i: int, state: State, bar: Progress) -> None:
    if not self.logs[i].room():
      self._end(i, None, self.lanes.params(state, i), bar)

  def _end(self, i: int, failure: str | None, own: Any, bar: Progress) -> None:
    self.active[i] = False
    bar.expect(bar.done, bar.total - self.logs[i].left)  # nobody waits for the rounds it leaves
    self.logs[i].end(failure, own)

  def _restore(self) -> State:
    """Returns the state to go on from: the newest sound checkpoint, or the start."""
    state = self.lanes.init()
    if not self._checkpoints.numbers():
      for log in self.logs:
        log.begin(0)
      return state
    last = np.array([x.recorded for x in self.logs])
    kept, notes = self._checkpoints.restore(
      tree.shapes(self._kept(state)), lambda kept: bool((kept.clients['done'] <= last).all())
    )
    self.active = np.array(kept.servers['active'])
    for log, done in zip(self.logs, kept.clients['done'], strict=True):
      log.begin(int(done), notes)
    bare = State(kept.round, *kept.params)
    for i in np.flatnonzero(
      ~self.active
    ).tolist():  # ended before the checkpoint: its state is as it was
      self.logs[i].end(*self._ended(self.logs[i], bare, i))
    return self.lanes.again(bare, self.active)

  def _ended(self, log: Log, bare: State, i: int) -> tuple[str | None, Any]:
    own = jax.tree.map(lambda x: np.asarray(x[i]), bare.params)
    return log.folder.manifest.get('failure'), own

  def _kept(self, state: State) -> State:
    kept = self.lanes.kept(state)
    done = np.array([x.done for x in self.logs], np.int32)
    return State(kept.round, tuple(kept[1:]), {'done': done}, {'active': self.active.copy()})

  def _save(self, state: State) -> None:
    for log in self.logs:
      log.sync()
    self._checkpoints.save(self._kept(state))
