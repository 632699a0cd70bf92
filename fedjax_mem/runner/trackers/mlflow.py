"""MLflow, in a database of the run's folder unless another store is named."""

import os
import time
from collections.abc import Sequence
from typing import Any

from fedjax_mem.runner.trackers._base import About, Record, Tracker, extra, numbers

FILE = 'mlflow.db'
_TAG = 'fedjax_mem.run_id'
_BATCH = 1000  # metrics that a store takes at once
_STATUS = {'finished': 'FINISHED', 'failed': 'FAILED', 'interrupted': 'KILLED'}


class Mlflow(Tracker):
  """Logs the numbers of each record, at the step of its round.

  A resumed run goes on with the run of its id. The rounds that it repeats are there twice, with
  equal values: MLflow removes nothing.
  """

  def __init__(self, uri: str | None = None, experiment: str = 'fedjax_mem'):
    """Takes where the run is kept.

    Args:
      uri: of the store, such as 'sqlite:///runs.db' or 'http://host:5000'; None: `mlflow.db` in
        the run's folder.
      experiment: MLflow's name of a set of runs.

    Raises:
      ValueError: mlflow is not installed.
    """
    # Else it tells its makers how it is used.
    os.environ.setdefault('MLFLOW_DISABLE_TELEMETRY', 'true')
    self._tracking = extra('mlflow.tracking')
    self._entities = extra('mlflow.entities')
    self._uri, self._experiment = uri, experiment
    self._client: Any = None
    self._run = ''

  def start(self, about: About) -> None:
    """Begins the run, or goes on with that of this id."""
    uri = self._uri or f'sqlite:///{(about.folder / FILE).absolute()}'
    self._client = self._tracking.MlflowClient(uri)
    found = self._client.get_experiment_by_name(self._experiment)
    at = found.experiment_id if found else self._client.create_experiment(self._experiment)
    known = self._client.search_runs([at], f"tags.`{_TAG}` = '{about.run_id}'")
    if known:
      self._run = known[0].info.run_id
      return
    tags = {_TAG: about.run_id}
    self._run = self._client.create_run(at, run_name=about.name, tags=tags).info.run_id
    param = self._entities.Param
    said = [param(k, str(x)[:6000]) for k, x in about.settings.items()]
    for i in range(0, len(said), 100):
      self._client.log_batch(self._run, params=said[i : i + 100])

  def segment(self, records: Sequence[Record]) -> None:
    """Logs the numbers."""
    now, metric = int(time.time() * 1000), self._entities.Metric
    made = [metric(k, x, now, r['round']) for r in records for k, x in numbers(r).items()]
    for i in range(0, len(made), _BATCH):
      self._client.log_batch(self._run, metrics=made[i : i + _BATCH])

  def end(self, status: str) -> None:
    """Ends the run."""
    self._client.set_terminated(self._run, _STATUS[status])
