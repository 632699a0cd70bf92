"""The table of robust rules, and what runs report of attacks and of rounds that were skipped."""

import dataclasses
import json

import pytest

from fedjax_mem.cli import main as cli
from fedjax_mem.config import registry
from fedjax_mem.config.load import StageSection
from fedjax_mem.runner import loop
from fedjax_mem.studies import robustness

FULL = (
  'selection.name=round_robin',
  'data.num_clients=10',
  'selection.cohort_size=10',
  'weighting.name=equal',
)


@pytest.fixture
def table(make, tmp_path, undrawn):
  """Returns (base, run of a small table: its cells and what it told)."""

  def run(*overrides, **options):
    told = []
    cells = robustness.robustness(
      make(*FULL, 'rounds=5', *overrides), tmp_path / 'out', tell=told.append, **options
    )
    return {(x.partition, x.attack, x.rule): x for x in cells}, told

  return run


@pytest.mark.slow
def test_the_mean_collapses_and_the_right_rules_hold(table, tmp_path):
  cells, told = table(
    rules=['mean', 'nnm_trimmed_mean'], attacks=['none', 'sign_flip_10', 'backdoor'],
    partitions=['iid'], seeds=(0, 1),
  )  # fmt: skip
  assert len(told) == 6
  of = lambda attack, rule: cells['iid', attack, rule]
  usual = of('none', 'mean').accuracies
  assert min(usual) > 0.75
  assert max(of('sign_flip_10', 'mean').accuracies) < 0.4
  for attack in ('sign_flip_10', 'backdoor'):
    held = of(attack, 'nnm_trimmed_mean').accuracies
    assert sum(held) / 2 > sum(usual) / 2 - 0.03
  assert min(of('backdoor', 'mean').successes) > 0.9
  assert max(of('backdoor', 'nnm_trimmed_mean').successes) < 0.1
  assert of('none', 'mean').successes == []
  lines = (tmp_path / 'out' / 'robustness.csv').read_text().splitlines()
  assert lines[0] == 'partition,attack,rule,accuracy,deviation,seeds,backdoor success'
  assert len(lines) == 7
  assert '| iid | mean |' in (tmp_path / 'out' / 'robustness.md').read_text()


@pytest.mark.slow
def test_the_table_goes_on_where_it_was_stopped(table, tmp_path):
  options = {'rules': ['median'], 'attacks': ['gaussian'], 'partitions': ['dirichlet']}
  first, told = table(seeds=(0,), **options)
  assert told == ['dirichlet, gaussian against median: running seeds [0]']
  path = tmp_path / 'out' / 'robustness.jsonl'
  (record,) = map(json.loads, path.read_text().splitlines())
  assert record['name'] == 'dirichlet-gaussian-median'
  path.write_text(path.read_text() + '{"hash": "cut o')  # killed while it was writing
  second, told = table(seeds=(0, 1), **options)
  assert told == ['dirichlet, gaussian against median: running seeds [1]']
  (key,) = first
  assert second[key].accuracies[0] == first[key].accuracies[0] and len(second[key].accuracies) == 2
  assert table(seeds=(0, 1), **options)[1] == []
  assert robustness.rows(list(second.values()))[0]['gaussian'].count('±') == 1


@pytest.mark.slow
def test_the_seeds_of_a_cell_are_those_of_runs_of_their_own(table, make, tmp_path):
  """One program for all seeds gives what a run of each would."""
  options = {'rules': ['krum'], 'attacks': ['alie'], 'partitions': ['iid'], 'attackers': 0.2}
  cells, _ = table(seeds=(3, 4), **options)
  base = dataclasses.replace(make(*FULL, 'rounds=5'), seed=4)
  stages = (
    StageSection(use='alie', options={'attackers': 0.2, 'z': 1.5}),
    StageSection(use='krum', options={'byzantine': 2}),
  )
  alone = loop.run(dataclasses.replace(base, stages=stages), tmp_path / 'runs', quiet=True)
  accuracy = alone.metrics[-1]['test_accuracy']
  assert cells['iid', 'alie', 'krum'].accuracies[1] == pytest.approx(accuracy, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('overrides', 'programs'),
  [
    ((), 1),
    (('selection.name=contribution', 'selection.cohort_size=3', 'data.validation=0.1'), 2),
    (('data.name=synthetic', 'data.num_clients=10'), 2),
    (('selection.clock={median_seconds=4.0}',), 2),
  ],
  ids=['blind', 'contribution', 'drawn data', 'clock'],
)
def test_what_is_one_seeds_own_is_in_no_other_seeds_program(
  overrides, programs, table, make, tmp_path, monkeypatch
):
  """Validation splits, durations and test sets of one seed would leak into the runs of another."""
  made, simulate = [], robustness.simulate

  def counting(*args, **options):
    made.append(args)
    return simulate(*args, **options)

  monkeypatch.setattr(robustness, 'simulate', counting)
  only = {'rules': ['mean'], 'attacks': ['none'], 'partitions': ['iid']}
  cells, _ = table(*overrides, seeds=(3, 4), **only)
  assert len(made) == programs
  alone = make(*FULL, 'rounds=5', 'data.partition=iid', *overrides, 'seed=4')
  last = loop.run(alone, tmp_path / 'runs', quiet=True).metrics[-1]
  found = cells['iid', 'none', 'mean'].accuracies[1]
  assert found == pytest.approx(last['test_accuracy'], abs=1e-3)


@pytest.mark.slow
def test_the_command(tiny, tmp_path, capsys, undrawn):
  words = ['table', 'robustness', tiny, '--seeds', 0, '--rounds', 1, '--rules', 'mean']
  words += ['--attacks', 'none', '--partitions', 'iid', '--out', tmp_path / 'out']
  assert cli.main([str(x) for x in words]) == 0
  said = capsys.readouterr().out
  assert 'partition  rule  none' in said and 'robustness.png' in said
  assert cli.main([str(x) for x in [*words, '--rules', 'meen']]) == 2
  assert "Did you mean 'mean'" in capsys.readouterr().err


def test_bad_input_of_the_table_of_rules(table):
  for options, words in (
    ({'attacks': ['ali']}, "attacks must be one of .* Did you mean 'alie'"),
    ({'partitions': ['skewed']}, 'partitions must be one of'),
    ({'seeds': ()}, 'seeds must be at least one'),
    ({'attackers': 1.5}, r'attackers must be a number in \[0, 1\]'),
  ):
    with pytest.raises(ValueError, match=words):
      table(**options)


def test_clients_that_would_hold_out_for_nothing_are_refused(make, tmp_path):
  with pytest.raises(ValueError, match=r'evaluation.clients must be 0: .*, got 0.2'):
    robustness.robustness(make('evaluation.clients=0.2'), tmp_path, seeds=(0,))


@pytest.mark.parametrize('entries', [robustness.RULES, robustness.ATTACKS])
def test_every_entry_is_made_of_stages(entries):
  given = {'num_clients': 20, 'num_classes': 10, 'attackers': 0.2, 'byzantine': 2}
  for stages in entries.values():
    for stage in stages:
      make = registry.factory('use', stage['use'], registry.LAYERS)
      registry.call('stages', make, stage.get('options', {}), **given)


@pytest.mark.slow
def test_a_run_reports_a_backdoor_and_what_was_skipped(make, tmp_path, capsys, undrawn):
  stages = (
    StageSection(use='backdoor', options={'attackers': 3, 'target': 1}, before_algorithm=True),
    StageSection(use='krum', options={'byzantine': 3}),
  )
  config = make(*FULL, 'rounds=2', 'selection.dropout=0.4')
  result = loop.run(dataclasses.replace(config, stages=stages), tmp_path)
  assert all(0 <= r['test_backdoor_success'] <= 1 for r in result.metrics)
  assert all(set(r) & {'test_backdoor_tries'} == set() for r in result.metrics)
  skipped = [r['round'] for r in result.metrics if r['krum/skipped']]
  assert skipped == [r['round'] for r in result.metrics if r['krum/rows'] < 9] != []
  said = ' '.join(capsys.readouterr().out.split())
  assert f"round {skipped[0]}: skipped, too few clients were left for 'krum'" in said
