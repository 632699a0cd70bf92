"""The table of codecs: bytes of a client's message against test accuracy, with its plot.

Every entry is a run of the same experiment with other stages. Finished runs are not repeated, and
interrupted runs are resumed. So the command can be stopped and given again.
"""

import dataclasses
import os
import pathlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_mem.config.load import Config
from fedjax_mem.config.sections import StageSection
from fedjax_mem.core import validate
from fedjax_mem.report import figures, plots
from fedjax_mem.report.runs import Run, load_run
from fedjax_mem.report.tables import format_table, summarise
from fedjax_mem.studies.cells import done

PLAIN = 'none'


def _feedback(**codec: Any) -> dict[str, Any]:
  return {'use': 'error_feedback', 'options': {'codec': codec}}


_TOP_5 = {'use': 'top_k', 'fraction': 0.05}
# Label -> the stage of that entry; the first entry has no compression.
CODECS: dict[str, dict[str, Any] | None] = {
  PLAIN: None,
  'quantize_8': {'use': 'quantize', 'options': {'bits': 8}},
  'quantize_4': {'use': 'quantize', 'options': {'bits': 4}},
  'ternary': {'use': 'ternary', 'options': {'clip': 2.5, 'block': 1024}},
  'sign_feedback': _feedback(use='sign', per_leaf=True),
  'eden_4': {'use': 'eden', 'options': {'bits': 4}},
  'eden_2': {'use': 'eden', 'options': {'bits': 2}},
  'drive': {'use': 'drive'},
  'random_k_10': {'use': 'random_k', 'options': {'fraction': 0.1}},
  'top_k_5': {'use': 'top_k', 'options': {'fraction': 0.05}},
  'top_k_5_feedback': _feedback(**_TOP_5),
  'top_k_1_feedback': _feedback(use='top_k', fraction=0.01),
  'top_k_5_quantize_4_feedback': _feedback(
    use='chain', first=_TOP_5, second={'use': 'quantize', 'bits': 4, 'stochastic': False}
  ),
  'low_rank_2': {'use': 'low_rank', 'options': {'rank': 2}},
}


_SUMMED = ('bytes_up', 'bytes_down', 'clients')


class Entry(NamedTuple):
  """One line of the table.

  Attributes:
    label: label of the codec.
    size: mean bytes of a client's message, over rounds and seeds.
    down: mean bytes sent to a client in a round, over rounds and seeds.
    accuracies: final test accuracy of each seed.
  """

  label: str
  size: float
  down: float
  accuracies: list[float]


def compression(
  base: Config,
  out: str | os.PathLike[str],
  *,
  codecs: Iterable[str] = tuple(CODECS),
  seeds: Sequence[int] = (0,),
  rounds: int | None = None,
  data_dir: str | None = None,
  tell: Callable[[str], None] = print,
) -> list[Entry]:
  """Runs what is missing, writes `compression.md`, `.csv` and `.png`, and returns the entries.

  Args:
    base: the experiment without compression.
    out: folder of the runs and of the table.
    codecs: labels of `CODECS`; 'none' is added, to compare with.
    seeds: seeds of the runs, at least one.
    rounds: number of rounds of each run; None: that of the experiment.
    data_dir: folder of prepared data sets; None: as `data.places` says.
    tell: function that shows a line of progress.

  Raises:
    ValueError: an unknown codec, no seed, or an experiment that cannot be run.
    RunFailed: a run cannot go on.
    Interrupted: by Ctrl-C; a second call goes on from there.
  """
  labels = list(dict.fromkeys([PLAIN, *codecs]))
  for label in labels:
    validate.one_of(CODECS, codecs=label)
  if not seeds:
    raise ValueError('seeds must be at least one, got none.')
  entries, out = [], pathlib.Path(out)
  for label in labels:
    configs = [_config(base, label, seed, rounds) for seed in dict.fromkeys(seeds)]
    runs = [load_run(done(config, out, data_dir, tell)) for config in configs]
    entries.append(_entry(label, runs))
  _write(entries, base, out)
  return entries


def _config(base: Config, label: str, seed: int, rounds: int | None) -> Config:
  stage = CODECS[label]
  added = () if stage is None else (StageSection(**stage),)
  return dataclasses.replace(
    base.with_seed(seed),
    name=f'{base.name}-{label}',
    rounds=base.rounds if rounds is None else rounds,
    stages=(*base.stages, *added),
  )


def _entry(label: str, runs: Sequence[Run]) -> Entry:
  sums = {key: sum(r[key] for run in runs for r in run.records) for key in _SUMMED}
  return Entry(
    label,
    sums['bytes_up'] / max(sums['clients'], 1),
    sums['bytes_down'] / max(sums['clients'], 1),
    [float(summarise(run)['final_accuracy']) for run in runs],
  )


def rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
  """Returns the lines of the table: sizes, compression factor, accuracies in per cent."""
  plain = next(x for x in entries if x.label == PLAIN)

  def mean(x: Entry) -> float:
    return 100 * statistics.fmean(x.accuracies)

  def deviation(x: Entry) -> float | None:
    return round(100 * statistics.stdev(x.accuracies), 2) if len(x.accuracies) > 1 else None

  return [
    {
      'codec': x.label,
      'bytes up': round(x.size),
      'fewer': round(plain.size / x.size, 2),
      'bytes down': round(x.down),
      'accuracy': round(mean(x), 2),
      'deviation': deviation(x),
      'points lost': round(mean(plain) - mean(x), 2),
      'seeds': len(x.accuracies),
    }
    for x in entries
  ]


def _write(entries: Sequence[Entry], base: Config, out: pathlib.Path) -> None:
  for style, suffix in (('markdown', 'md'), ('csv', 'csv')):
    (out / f'compression.{suffix}').write_text(format_table(rows(entries), style))
  points: Mapping[str, Any] = {x.label: (x.size, x.accuracies) for x in entries}
  figures.save(plots.tradeoff(points, f'{base.name}: bytes and accuracy'), out / 'compression.png')
