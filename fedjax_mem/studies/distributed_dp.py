"""The table of distributed noise: bits of a value against test accuracy and epsilon, with its plot.

Every entry is a run of the same experiment with noise calibrated to an epsilon. The noise is
distributed, on quantisation grids of several numbers of bits, or, to compare with, added by the
server to floats. Finished runs are not repeated, and interrupted runs are resumed.
"""

import dataclasses
import os
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fedjax_mem.account.guarantee import EXACT, IDEAL
from fedjax_mem.config.load import Config
from fedjax_mem.config.sections import StageSection
from fedjax_mem.core import validate
from fedjax_mem.report import figures
from fedjax_mem.report.bits import bits_and_accuracy
from fedjax_mem.report.runs import load_run
from fedjax_mem.report.tables import format_table, summarise
from fedjax_mem.stages.privacy.distributed import NoRoom
from fedjax_mem.studies.cells import done

EPSILONS = (2.0, 8.0)
BITS = (9, 10, 11, 12, 14, 18)


class Entry(NamedTuple):
  """One line of the table.

  Attributes:
    target: epsilon that the noise was calibrated to.
    bits: bits per value of the sum; None: floats, with Gaussian noise on the server.
    epsilon: epsilon of the whole run, from its ledger.
    size: mean bytes of a client's message.
    accuracies: final test accuracy of each seed.
  """

  target: float
  bits: int | None
  epsilon: float
  size: float
  accuracies: list[float]


def distributed_dp(
  base: Config,
  out: str | os.PathLike[str],
  *,
  epsilons: Sequence[float] = EPSILONS,
  bits: Sequence[int] = BITS,
  seeds: Sequence[int] = (0,),
  rounds: int | None = None,
  data_dir: str | None = None,
  tell: Callable[[str], None] = print,
) -> list[Entry]:
  """Runs what is missing, writes `distributed_dp.md`, `.csv` and `.png`, and returns the entries.

  Args:
    base: the experiment, with the stage `distributed` without a noise multiplier.
    out: folder of the runs and of the table.
    epsilons: budgets of a run.
    bits: numbers of bits per value; a number too small for the noise is reported and left out.
    seeds: seeds of the runs, at least one.
    rounds: number of rounds of each run; None: that of the experiment.
    data_dir: folder of prepared data sets; None: as `data.places` says.
    tell: function that shows a line of progress.

  Raises:
    ValueError: no epsilon, bits or seed, or an experiment that cannot be run.
    RunFailed: a run cannot go on.
    Interrupted: by Ctrl-C; a second call goes on from there.
  """
  for name, values in (('epsilons', epsilons), ('bits', bits), ('seeds', seeds)):
    if not values:
      raise ValueError(f'{name} must be at least one, got none.')
  for value in epsilons:
    validate.positive(epsilons=value)
  _check(base)
  out = pathlib.Path(out)
  entries = []
  for target in dict.fromkeys(epsilons):
    for number in (None, *sorted(set(bits))):
      configs = [_config(base, target, number, seed, rounds) for seed in dict.fromkeys(seeds)]
      try:
        folders = [done(config, out, data_dir, tell) for config in configs]
      except NoRoom as error:
        tell(f'{configs[0].name}: left out, {error}')
        continue
      entries.append(_entry(target, number, folders))
  _write(entries, base, out)
  return entries


def _check(base: Config) -> None:
  """Raises `ValueError` unless the experiment has distributed noise that is not calibrated yet."""
  noisy = [x for x in base.stages if x.use == 'distributed']
  if len(noisy) != 1 or 'noise_multiplier' in noisy[0].options or base.privacy.delta is None:
    raise ValueError(
      'config must be of an experiment with one stage distributed, without noise_multiplier, and '
      f'with privacy.delta, got the stages {[x.use for x in base.stages]!r}.'
    )


def _config(base: Config, target: float, bits: int | None, seed: int, rounds: int | None) -> Config:
  label = 'server' if bits is None else f'{bits}bits'
  stages = [x for x in map(lambda stage: _stage(stage, bits), base.stages) if x is not None]
  return dataclasses.replace(
    base.with_seed(seed),
    name=f'{base.name}-eps{target:g}-{label}',
    rounds=base.rounds if rounds is None else rounds,
    stages=tuple(stages),
    privacy=dataclasses.replace(base.privacy, target_epsilon=float(target)),
  )


def _stage(stage: StageSection, bits: int | None) -> StageSection | None:
  """Returns a stage with `bits` bits; for None, its replacement if the server adds the noise."""
  if stage.use not in ('distributed', 'mask'):
    return stage
  if bits is not None:
    return dataclasses.replace(stage, options={**stage.options, 'bits': bits})
  if stage.use == 'mask':
    return None
  clip = {name: stage.options[name] for name in ('l2_clip_norm',) if name in stage.options}
  return StageSection(use='central', options=clip)


def _entry(target: float, bits: int | None, folders: Sequence[pathlib.Path]) -> Entry:
  runs = [load_run(folder) for folder in folders]
  sent, clients = (
    sum(record[key] for run in runs for record in run.records) for key in ('bytes_up', 'clients')
  )
  return Entry(
    target,
    bits,
    max(float(run.records[-1]['epsilon']) for run in runs),
    sent / max(clients, 1),
    [float(summarise(run)['final_accuracy']) for run in runs],
  )


def rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
  """Returns the lines of the table: noise and its law, bits, epsilon, bytes, accuracies."""

  def mean(x: Entry) -> float:
    return 100 * statistics.fmean(x.accuracies)

  def deviation(x: Entry) -> float | None:
    return round(100 * statistics.stdev(x.accuracies), 2) if len(x.accuracies) > 1 else None

  server = {x.target: mean(x) for x in entries if x.bits is None}
  return [
    {
      'noise': 'server' if x.bits is None else 'distributed',
      'law': IDEAL if x.bits is None else EXACT,
      'bits': 32 if x.bits is None else x.bits,
      'epsilon': round(x.epsilon, 3),
      'bytes up': round(x.size),
      'accuracy': round(mean(x), 2),
      'deviation': deviation(x),
      'points lost': round(server[x.target] - mean(x), 2),
      'seeds': len(x.accuracies),
    }
    for x in entries
  ]


def _write(entries: Sequence[Entry], base: Config, out: pathlib.Path) -> None:
  for style, suffix in (('markdown', 'md'), ('csv', 'csv')):
    (out / f'distributed_dp.{suffix}').write_text(format_table(rows(entries), style))
  lines: dict[str, dict[int, list[float]]] = {}
  levels: dict[str, float] = {}
  for x in entries:
    label = f'ε = {x.target:g}'
    if x.bits is None:
      levels[label] = statistics.fmean(x.accuracies)
    else:
      lines.setdefault(label, {})[x.bits] = x.accuracies
  figure = bits_and_accuracy(lines, levels, f'{base.name}: bits, accuracy and ε')
  figures.save(figure, out / 'distributed_dp.png')
