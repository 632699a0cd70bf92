"""The end of a run: its plots, its report, and what the caller gets."""

import dataclasses
import html
import pathlib
from typing import Any

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.core import State
from fedjax_mem.engine import personal
from fedjax_mem.engine.mesh import fetch
from fedjax_mem.models import saved
from fedjax_mem.runner.folder import RunFolder
from fedjax_mem.runner.prepare import Ready


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
  """The result of a run.

  Attributes:
    params: the server's parameters after the last round; what clients keep of them is the mean.
    metrics: one record per round, as in `metrics.jsonl`.
    folder: folder of the run.
  """

  params: Any
  metrics: list[dict[str, Any]]
  folder: pathlib.Path

  def to_pandas(self) -> Any:
    """Returns the records as a `pandas.DataFrame`, a line a round and a column a metric.

    Raises:
      ValueError: pandas is not installed.
    """
    try:
      import pandas
    except ImportError as error:
      raise ValueError("to_pandas needs pandas: pip install 'fedjax_mem[tables]'.") from error
    return pandas.DataFrame(self.metrics).set_index('round')

  def plot(self, *others: 'Result') -> Any:
    """Returns a figure of this run's learning curves, with those of other runs beside them.

    A notebook shows it; `figure.savefig('curves.pdf')` writes it. A run's label is the name of its
    folder: that of its configuration, and a hash.

    Args:
      others: results of other runs, whose folders are still there.

    Raises:
      ValueError: a folder is not a run's any more.
    """
    from fedjax_mem.report.plots import learning_curves  # here: matplotlib is slow to import

    return learning_curves([x.folder for x in (self, *others)])

  def __repr__(self) -> str:
    """Returns one line, however many parameters and records there are."""
    return f'Result({len(self.metrics)} rounds, in {str(self.folder)!r})'

  def _repr_html_(self) -> str:
    """Returns a table of the last record, which a notebook shows; however many there are."""
    last = self.metrics[-1] if self.metrics else {}
    said = {k: x for k, x in last.items() if isinstance(x, str | int | float)}
    shown = {k: f'{x:.6g}' if isinstance(x, float) else str(x) for k, x in said.items()}
    cells = [(html.escape(k), html.escape(x)) for k, x in shown.items()]
    rows = ''.join(f'<tr><th>{k}</th><td>{x}</td></tr>' for k, x in cells)
    where = html.escape(str(self.folder))
    return f'<p>run in <code>{where}</code></p><table>{rows}</table>'


def write_params(folder: RunFolder, params: Any) -> None:
  """Writes `params.safetensors`; where that cannot be, a warning says why, and the run has ended.

  They are in the last checkpoint as well, which `fm.load` then reads.
  """
  try:
    saved.write(folder.path / saved.FINAL, params)
  except Exception as error:  # a tree that no file can hold, a full disk
    text = f'{saved.FINAL} could not be written: {" ".join(str(error).split())[:200]}'
    folder.note(warnings=list(dict.fromkeys([*folder.manifest['warnings'], text])))


def finish(
  ready: Ready,
  folder: RunFolder,
  state: State,
  records: list[dict[str, Any]],
  leads: bool = True,
) -> Result:
  """Ends a run whose rounds are done: parameters, plots, report, status; returns its result.

  Args:
    ready: parts of the run.
    folder: folder of the run.
    state: after the last round.
    records: of all rounds.
    leads: whether this process writes; all processes of a cluster take part.
  """
  # Imported here: matplotlib is slow to import, and the first round would wait for it.
  from fedjax_mem.report import figures, plots
  from fedjax_mem.report.html import write_report
  from fedjax_mem.runner import client_scores, contributions

  layers = ready.parts.layers
  scored = ready.sim.scored(state)
  number, rows = int(state.round), personal.rows(layers, state)
  # The parameters on the devices: of those on the host the program would be compiled once more.
  scores = ready.evaluate_clients.each(scored, rows)
  params = fetch(scored)
  if not leads:
    return Result(params, records, folder.path)
  write_params(folder, params)
  folder.note(status='finished', rounds_done=int(state.round))
  title, claims = ready.config.data.name, ready.sim.claims
  if claims:
    title = f'{title} ({NOT_COVERED})'
  counts, labels = ready.parts.data.shown()
  light, dark = (plots.partition(counts, labels, title, dark) for dark in (False, True))
  figures.save(light, folder.path / 'partition.png')
  figures.save(dark, folder.path / 'partition_dark.png', like=light)
  figures.save(plots.learning_curves(folder.path), folder.path / 'learning_curve.png')
  client_scores.write(folder.path, ready.evaluate_clients, scores, number)
  contributions.write(folder.path, state, ready.parts.data.clients, claims)
  write_report(folder.path, folder.path / 'report.html')
  return Result(params, records, folder.path)
