"""Weights & Biases, offline unless it is asked: `wandb sync RUN/wandb/offline-run-*` uploads it."""

from collections.abc import Sequence
from typing import Any

from fedjax_mem.core import validate
from fedjax_mem.runner.trackers._base import About, Record, Tracker, extra, numbers

_MODES = ('offline', 'online')


class Wandb(Tracker):
  """Logs the numbers of each record, at the step of its round."""

  def __init__(self, project: str = 'fedjax_mem', mode: str = 'offline'):
    """Takes what W&B files the run under.

    Args:
      project: of the run.
      mode: 'offline': nothing leaves the machine until it is synced; or 'online'.

    Raises:
      ValueError: another mode, or wandb is not installed.
    """
    validate.one_of(_MODES, mode=mode)
    self._wandb = extra('wandb')
    self._project, self._mode = project, mode
    self._run: Any = None

  def start(self, about: About) -> None:
    """Begins the run, or goes on with that of this id."""
    # No look at the machine or the console: what leaves a run is what it records.
    quiet = self._wandb.Settings(console='off', silent=True, x_disable_stats=True)
    self._run = self._wandb.init(
      project=self._project,
      name=about.name,
      id=about.run_id,
      resume='allow',
      mode=self._mode,
      dir=str(about.folder),
      config=dict(about.settings),
      settings=quiet,
    )

  def segment(self, records: Sequence[Record]) -> None:
    """Logs the numbers."""
    for record in records:
      self._run.log(numbers(record), step=record['round'])

  def end(self, status: str) -> None:
    """Ends the run."""
    self._run.finish(exit_code=int(status == 'failed'))
