"""What one lane leaves: a run's folder with records, ledgers and a manifest, but no report."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_mem.config.load import config_hash
from fedjax_mem.report.tracker import MetricsWriter, reach, truncate_after
from fedjax_mem.runner import ledgers as spending
from fedjax_mem.runner import restoring, secret
from fedjax_mem.runner.ending import write_params
from fedjax_mem.runner.folder import RunFolder, create
from fedjax_mem.runner.prepare import facts, keeps_root
from fedjax_mem.runner.records import of_run
from fedjax_mem.runner.segments import failed
from fedjax_mem.studies.sweeps.planning import Planned

METRICS = 'metrics.jsonl'


def place(planned: Planned, out: pathlib.Path) -> pathlib.Path:
  """Returns where the folder of a run of a sweep is, or will be."""
  config = planned.point.config
  return out / f'{config.name}-{config_hash(config)}'


class Log:
  """The folder of one lane. What it publishes is in the lane's ledger before."""

  def __init__(self, planned: Planned, out: pathlib.Path, sweep: pathlib.Path):
    """Makes the folder, or opens that of the interrupted sweep, with its secret root.

    Args:
      planned: the lane.
      out: folder in which that of the lane is.
      sweep: folder of the sweep.

    Raises:
      ValueError: a folder that is damaged, or whose secret root is missing or of another run.
    """
    path, root = place(planned, out), keeps_root(planned.ready)
    self._began_before = path.exists()
    if not self._began_before:
      ready = planned.ready
      given = ready.sim.root if root else None, ready.start
      create(ready.config, out, *given, together=True, sweep=str(sweep))
    self.folder = RunFolder(path)
    if self._began_before and root:
      held = secret.read(path, self.folder.manifest.get('run_id'))
      sim = planned.ready.sim.with_root(held)
      lane = None if planned.lane is None else planned.lane._replace(sim=sim)
      planned = planned._replace(ready=planned.ready._replace(sim=sim), lane=lane)
    self.planned, self.done = planned, 0
    self._ledgers = planned.ready.ledgers
    self._writer: MetricsWriter | None = None

  @property
  def recorded(self) -> int:
    """The last round up to which there is a record of each."""
    return reach(restoring.records(self.folder.path / METRICS))

  @property
  def left(self) -> int:
    """The rounds that were planned and are not done."""
    return self.planned.point.config.rounds - self.done

  def begin(self, done: int, notes: Sequence[str] = ()) -> None:
    """Goes on after `done` rounds: later records are removed, they will be written again.

    Args:
      done: rounds of the checkpoint.
      notes: what is said of it.

    Raises:
      ValueError: a ledger that is missing, or states fewer rounds than are published.
    """
    ready, file = self.planned.ready, self.folder.path / METRICS
    said, records = facts(ready), restoring.records(file)
    said['warnings'] += [*notes, *restoring.lost(records, done)]
    self.folder.note(**said, status='running')
    if self._ledgers and self._began_before:
      self._ledgers.resume(self.folder.path, done, restoring.published(records))
    truncate_after(file, done)
    self.done = done
    self._records = of_run(ready.config, ready.parts, ready.sim, self._ledgers)
    self._writer = MetricsWriter(file)

  def room(self) -> int:
    """Returns how many rounds are left, within the budget."""
    total, left = self.planned.point.config.rounds, self.left
    return min(left, self._ledgers.room(self.done, total)) if self._ledgers and left else left

  def charge(self, count: int, ids: np.ndarray | None) -> None:
    """Charges the next `count` rounds on the disk; `ids` [count, C] are the clients drawn."""
    if self._ledgers:
      self._ledgers.charge(self.done + 1, count, ids)
      self._ledgers.save(self.folder.path)

  def write(
    self, rows: Mapping[str, np.ndarray], seconds: float, params: Any, score: bool
  ) -> tuple[list[dict[str, Any]], str | None]:
    """Writes the records of rounds, and returns them and why the lane cannot go on, or None.

    Args:
      rows: metric -> [R, ...].
      seconds: the lane's share of their time.
      params: after them.
      score: whether to evaluate these.
    """
    ready = self.planned.ready
    records = self._records.make(self.done + 1, rows, seconds)
    self.done += len(records)
    failure = failed(ready.sim, self.done, dict(rows))
    if score and not failure:
      of_clients = ready.evaluate_clients(params)
      self._records.score(records[-1], ready.evaluate(params), of_clients)
    for record in records:
      self._records.mark(record)
      if self._writer is not None:
        self._writer.write(record)
    if self._ledgers:
      self._ledgers.finish(self.done)
    return records, failure

  def end(self, failure: str | None, params: Any) -> None:
    """Ends the lane: its state, its statement of privacy, its score on the validation split."""
    said: dict[str, Any] = dict(self._records.coverage())
    self.folder.manifest.pop('failure', None)
    if self._ledgers:
      self._ledgers.save(self.folder.path)
      said |= spending.facts(self._ledgers, ended=True)
    planned = self.planned.point.config.rounds
    if failure:
      said |= {'status': 'failed', 'failure': failure}
    else:
      write_params(self.folder, params)
      said |= {'status': 'finished', 'rounds_done': self.done}
      if self.planned.validate is not None:
        said['validation'] = self.planned.validate(params)
      if self.done < planned:
        text = f'ended after round {self.done}: the next would exceed the budget of epsilon'
        said['warnings'] = [*self.folder.manifest['warnings'], text]
    self.close()
    self.folder.note(**said)

  def sync(self) -> None:
    """Returns when the records are on the disk; the lane goes on."""
    if self._writer is not None:
      self._writer.sync()

  def close(self) -> None:
    """Puts the records on the disk, and writes no more."""
    if self._writer is not None:
      self._writer.close()
      self._writer = None
