"""The table of robust rules: test accuracy under every attack, for iid and non-iid clients.

A cell is one program, compiled once and run for every seed. If a seed changes more than the
clients' examples, each seed has its own program. Scores are appended to a file of JSON lines as
soon as they are known, and read from it the next time. So the command can be stopped and given
again. Runs have no folders: there are hundreds of them, of a few seconds each.
"""

import dataclasses
import json
import os
import pathlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_mem.config import build
from fedjax_mem.config.load import Config, config_hash
from fedjax_mem.config.sections import DataSection, StageSection
from fedjax_mem.core import Shape, tree, validate
from fedjax_mem.data.source import FederatedData
from fedjax_mem.engine import personal, simulate
from fedjax_mem.engine.mesh import replicated
from fedjax_mem.report import figures, heatmap
from fedjax_mem.report.tables import format_table
from fedjax_mem.runner import devices
from fedjax_mem.runner.scores import scorer
from fedjax_mem.stages.aggregate import AGGREGATION
from fedjax_mem.stages.attack import ATTACKS as ATTACK_LAYERS

_BYZANTINE = ('trimmed_mean', 'krum', 'multi_krum', 'bulyan', 'dnc', 'nnm')
# Label -> the layers after the weighing; `byzantine` is filled in.
RULES: dict[str, tuple[dict[str, Any], ...]] = {
  'mean': (),
  'norm_bounding': ({'use': 'norm_bounding', 'options': {'l2_clip_norm': 1.0}},),
  'centered_clipping': ({'use': 'centered_clipping', 'options': {'radius': 1.0}},),
  'median': ({'use': 'median'},),
  'trimmed_mean': ({'use': 'trimmed_mean'},),
  'geometric_median': ({'use': 'geometric_median'},),
  'krum': ({'use': 'krum'},),
  'multi_krum': ({'use': 'multi_krum'},),
  'bulyan': ({'use': 'bulyan'},),
  'dnc': ({'use': 'dnc'},),
  'signguard': ({'use': 'signguard'},),
  'bucketing_median': ({'use': 'bucketing', 'options': {'size': 2}}, {'use': 'median'}),
  'nnm_trimmed_mean': ({'use': 'nnm'}, {'use': 'trimmed_mean'}),
}
# Label -> the layers of the attack; `attackers` is filled in.
ATTACKS: dict[str, tuple[dict[str, Any], ...]] = {
  'none': (),
  'label_flip': ({'use': 'label_flip', 'before_algorithm': True},),
  'sign_flip_10': ({'use': 'sign_flip', 'options': {'scale': 10.0}},),
  'gaussian': ({'use': 'gaussian'},),
  'ipm_10': ({'use': 'ipm', 'options': {'factor': 10.0}},),
  'alie': ({'use': 'alie', 'options': {'z': 1.5}},),
  'min_max': ({'use': 'min_max'},),
  'mimic': ({'use': 'mimic'},),
  'backdoor': ({'use': 'backdoor', 'before_algorithm': True}, {'use': 'scaling'}),
}
# Label -> what it changes in the data section.
PARTITIONS: dict[str, dict[str, Any]] = {
  'iid': {'partition': 'iid', 'alpha': None, 'min_examples': None},
  'dirichlet': {'partition': 'dirichlet'},
}
_FILE = 'robustness.jsonl'
# Samplers whose layers do not depend on the data, so that one program serves every seed.
_BLIND = ('uniform', 'poisson', 'round_robin', 'min_separation')


class Cell(NamedTuple):
  """One cell of the table, over seeds.

  Attributes:
    partition: label of the partition.
    attack: label of the attack.
    rule: label of the rule.
    accuracies: final test accuracy of each seed.
    successes: for each seed, the share of images with the trigger that are classified as the
      target; empty without a backdoor.
  """

  partition: str
  attack: str
  rule: str
  accuracies: list[float]
  successes: list[float]


def robustness(
  base: Config,
  out: str | os.PathLike[str],
  *,
  rules: Iterable[str] = tuple(RULES),
  attacks: Iterable[str] = tuple(ATTACKS),
  partitions: Iterable[str] = tuple(PARTITIONS),
  attackers: float = 0.2,
  seeds: Sequence[int] = (0, 1, 2),
  rounds: int | None = None,
  data_dir: str | None = None,
  tell: Callable[[str], None] = print,
) -> list[Cell]:
  """Runs what is missing, writes `robustness.md`, `.csv` and `.png`, and returns the cells.

  Args:
    base: the experiment, without its own attacks and rules. The rules' `byzantine` is the share
      `attackers` of its cohort.
    out: folder of the table.
    rules: labels of `RULES`.
    attacks: labels of `ATTACKS`.
    partitions: labels of `PARTITIONS`; 'dirichlet' takes alpha and the rest from the experiment.
    attackers: share of the clients that are hostile, in [0, 1).
    seeds: seeds of the runs, at least one; a seed draws the partition, too.
    rounds: number of rounds of each run; None: that of the experiment.
    data_dir: folder of prepared data sets; None: as `data.places` says.
    tell: function that shows a line of progress.

  Raises:
    ValueError: an unknown label, no seed, or an experiment that cannot be run or that holds out
      examples of its clients, which nothing here would score.
  """
  rules, attacks, partitions = (list(dict.fromkeys(x)) for x in (rules, attacks, partitions))
  _check(base, seeds, attackers, rules=rules, attacks=attacks, partitions=partitions)
  out = pathlib.Path(out)
  base = dataclasses.replace(base, rounds=base.rounds if rounds is None else rounds)
  known_scores, cells = _read(out / _FILE), []
  devices.prepare(base.execution.devices)
  for partition in partitions:
    data: dict[int, FederatedData] = {}
    for attack in attacks:
      for rule in rules:
        configs = [_config(base, partition, attack, rule, attackers, s) for s in seeds]
        missing = [c for c in configs if config_hash(c) not in known_scores]
        if missing:
          tell(f'{partition}, {attack} against {rule}: running seeds {[c.seed for c in missing]}')
          for config, scores in zip(missing, _scores(missing, data, data_dir), strict=True):
            known_scores[config_hash(config)] = scores
            _append(out / _FILE, {'hash': config_hash(config), 'name': config.name, **scores})
        found = [known_scores[config_hash(c)] for c in configs]
        success = [x['backdoor_success'] for x in found if 'backdoor_success' in x]
        cells.append(Cell(partition, attack, rule, [x['accuracy'] for x in found], success))
  _write(cells, base, attackers, out)
  return cells


def _check(base: Config, seeds: Sequence[int], attackers: float, **labels: list[str]) -> None:
  for name, known in (('rules', RULES), ('attacks', ATTACKS), ('partitions', PARTITIONS)):
    for label in labels[name]:
      validate.one_of(known, **{name: label})
  if not seeds:
    raise ValueError('seeds must be at least one, got none.')
  validate.fraction(attackers=attackers)
  if base.evaluation.clients:
    raise ValueError(
      'evaluation.clients must be 0: the table has no scores of single clients, '
      f'got {base.evaluation.clients:g}.'
    )


def _config(
  base: Config, partition: str, attack: str, rule: str, attackers: float, seed: int
) -> Config:
  """Returns the experiment of a cell and seed."""
  hostile = int(attackers * base.selection.cohort_size + 1e-9)

  def stage(section: dict[str, Any]) -> StageSection:
    filled = {'attackers': attackers} if section['use'] in ATTACK_LAYERS else {}
    if section['use'] in _BYZANTINE:
      filled = {'byzantine': hostile}
    options = {**section.get('options', {}), **filled}
    return StageSection(**{**section, 'options': options})

  own = [s for s in base.stages if s.use not in ATTACK_LAYERS and s.use not in AGGREGATION]
  return dataclasses.replace(
    base.with_seed(seed),
    name=f'{partition}-{attack}-{rule}',
    data=_partition(base.data, partition),
    stages=(*own, *map(stage, ATTACKS[attack]), *map(stage, RULES[rule])),
  )


def _partition(section: DataSection, label: str) -> DataSection:
  changed = dict(PARTITIONS[label])
  if label == 'dirichlet' and section.alpha is None:
    changed['alpha'] = 0.5
  return dataclasses.replace(section, **changed)


def _scores(
  configs: Sequence[Config], data: dict[int, FederatedData], data_dir: str | None
) -> list[dict[str, float]]:
  """Returns the scores of one experiment for several seeds, by one program if possible."""
  for config in configs:
    if config.seed not in data:
      data[config.seed] = build.load_data(config, data_dir)
  if len(configs) > 1 and not _alike(configs, data):
    return [_scores([config], data, data_dir)[0] for config in configs]
  counts = [data[c.seed].counts for c in configs]
  equal = all((c == counts[0][0]).all() for c in counts)
  shape = Shape(len(counts[0]), max(int(c.max()) for c in counts), equal)
  parts = [build.assemble(config, data[config.seed]) for config in configs]
  config, first = configs[0], parts[0]
  sim = simulate(
    first.layers,
    first.params,
    first.data.population(),
    max_rounds=config.rounds,
    shape=shape,
    transforms=(first.data.preprocess,),
  )
  evaluate = scorer(first, config.evaluation.batch_size, sim.setting.layout.mesh)
  scores = []
  for config, part in zip(configs, parts, strict=True):
    population = jax.device_put(part.data.population(), replicated(sim.setting.layout.mesh))
    roots = {'seed': config.seed, 'noise_seed': config.noise_seed}
    state = sim.init(part.params, population, **roots)
    state, _ = sim.run(state, config.rounds, population, **roots)
    found = evaluate(personal.scored(first.layers, state))
    # Parameters that are not finite have no accuracy: the model is lost.
    lost = not bool(tree.finite(state.params))
    scores.append({k: 0.0 if lost else v for k, v in found.items() if k != 'loss'})
  return scores


def _alike(configs: Sequence[Config], data: dict[int, FederatedData]) -> bool:
  """Returns whether one program serves all seeds.

  It does if the test set is the same, and if no sampler or clock holds sizes, durations or a
  validation split, which depend on the seed.
  """
  section, tests = configs[0].selection, [data[c.seed].test for c in configs]
  blind = section.name in _BLIND and not section.clock
  return blind and all(np.array_equal(t[k], tests[0][k]) for t in tests for k in tests[0])


def _read(path: pathlib.Path) -> dict[str, dict[str, float]]:
  """Returns the hash of each experiment -> its scores; an incomplete line is skipped."""
  found = {}
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue
    found[record['hash']] = {k: v for k, v in record.items() if k not in ('hash', 'name')}
  return found


def _append(path: pathlib.Path, record: dict[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  text = path.read_text() if path.exists() else ''
  with path.open('a') as file:
    file.write(('' if not text or text.endswith('\n') else '\n') + json.dumps(record) + '\n')


def rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
  """Returns the lines of the table: one per partition and rule, accuracies in per cent."""
  found: dict[tuple[str, str], dict[str, Any]] = {}
  for x in cells:
    row = found.setdefault((x.partition, x.rule), {'partition': x.partition, 'rule': x.rule})
    row[x.attack] = _percent(x.accuracies)
    if x.successes:
      row[f'{x.attack} success'] = _percent(x.successes)
  return list(found.values())


def _percent(values: Sequence[float]) -> str:
  mean = f'{100 * statistics.fmean(values):.1f}'
  return f'{mean} ± {100 * statistics.stdev(values):.1f}' if len(values) > 1 else mean


def _write(cells: Sequence[Cell], base: Config, attackers: float, out: pathlib.Path) -> None:
  out.mkdir(parents=True, exist_ok=True)
  (out / 'robustness.md').write_text(format_table(rows(cells), 'markdown'))
  long = [
    {
      'partition': x.partition,
      'attack': x.attack,
      'rule': x.rule,
      'accuracy': statistics.fmean(x.accuracies),
      'deviation': statistics.stdev(x.accuracies) if len(x.accuracies) > 1 else None,
      'seeds': len(x.accuracies),
      'backdoor success': statistics.fmean(x.successes) if x.successes else None,
    }
    for x in cells
  ]
  (out / 'robustness.csv').write_text(format_table(long, 'csv'))
  panels: dict[str, dict[tuple[str, str], list[float]]] = {}
  for x in cells:
    panels.setdefault(x.partition, {})[x.rule, x.attack] = x.accuracies
  title = f'{base.data.name}: {100 * attackers:g}% hostile clients, {base.rounds} rounds'
  figures.save(heatmap.heatmap(panels, title), out / 'robustness.png')
