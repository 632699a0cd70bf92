"""The end of a run: its plots, its report, and what the caller gets."""

import dataclasses
import pathlib
from typing import Any

import jax

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.core import State
from fedjax_mem.models import saved
from fedjax_mem.runner.folder import RunFolder
from fedjax_mem.runner.prepare import Ready


@dataclasses.dataclass(frozen=True)
class Result:
  """The result of a run.

  Attributes:
    params: the server's parameters after the last round.
    metrics: one record per round, as in `metrics.jsonl`.
    folder: folder of the run.
  """

  params: Any
  metrics: list[dict[str, Any]]
  folder: pathlib.Path


def finish(ready: Ready, folder: RunFolder, state: State, records: list[dict[str, Any]]) -> Result:
  """Ends a run whose rounds are done: parameters, plots, report, status; returns its result.

  Args:
    ready: parts of the run.
    folder: folder of the run.
    state: after the last round.
    records: of all rounds.
  """
  # Imported here: matplotlib is slow to import, and the first round would wait for it.
  from fedjax_mem.report import figures, plots
  from fedjax_mem.report.html import write_report
  from fedjax_mem.runner import contributions

  params = jax.device_get(state.params)
  saved.write(folder.path / saved.FINAL, params)
  folder.note(status='finished', rounds_done=int(state.round))
  title, claims = ready.config.data.name, ready.sim.claims
  if claims:
    title = f'{title} ({NOT_COVERED})'
  counts, labels = ready.parts.data.shown()
  for dark, name in ((False, 'partition.png'), (True, 'partition_dark.png')):
    figures.save(plots.partition(counts, labels, title, dark), folder.path / name)
  figures.save(plots.learning_curves(folder.path), folder.path / 'learning_curve.png')
  contributions.write(folder.path, state, ready.parts.data.clients, claims)
  write_report(folder.path, folder.path / 'report.html')
  return Result(params, records, folder.path)
