"""What stacks of methods gave when they were recorded: all methods are in, and the check tells."""

import importlib
import importlib.util
import json
import math
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fedjax_mem as fm
import fedjax_mem.optim
import fedjax_mem.stages
from fedjax_mem import data
from fedjax_mem.config import sections
from fedjax_mem.models.registry import MODELS
from fedjax_mem.stages.select import TRACES

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'record.py'
# They take long to compile, or read text, of which there is none without a download.
NOT_RUN = {'char_lstm', 'cnn_mcmahan', 'lenet', 'resnet_gn', 'transformer'}


def _script():
  spec = importlib.util.spec_from_file_location('record', SCRIPT)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


record = _script()
STACKS = {x.name: tomllib.loads(x.text) for x in record.stacks_in(record.STACKS)}
RECORDED = json.loads(record.RECORDED.read_text())['stacks']
METHODS = tomllib.loads(record.METHODS.read_text())


def registries():
  """Returns every registry: dicts in capitals of the rooms of layers, and what else has names."""
  rooms = [
    importlib.import_module(f'fedjax_mem.stages.{x.name}')
    for x in pkgutil.iter_modules(fedjax_mem.stages.__path__)
  ]
  found = {
    name: set(value)
    for room in (fedjax_mem.optim, *rooms)
    for name, value in vars(room).items()
    if name.isupper() and isinstance(value, dict)
  }
  found |= {'TRACES': set(TRACES), 'SCHEDULES': set(sections.SCHEDULES)}
  return found | {'MODELS': set(MODELS) - NOT_RUN, 'PARTITIONS': set(data.PARTITIONS)}


# Where a configuration names the entries of a registry; those of the others are stages.
PLACES = {
  'ALGORITHMS': ('algorithm', 'name'),
  'SAMPLERS': ('selection', 'name'),
  'WEIGHINGS': ('weighting', 'name'),
  'SERVER_OPTIMIZERS': ('server', 'optimizer'),
  'SCHEDULES': ('client', 'learning_rate_schedule'),
  'TRACES': ('selection', 'availability', 'use'),
  'MODELS': ('model', 'name'),
  'PARTITIONS': ('data', 'partition'),
}


def at(table, path):
  for key in path:
    table = table.get(key, {})
  return table


def uses(value):
  """Returns the names of layers in the stages of a configuration, codecs in codecs as well."""
  if isinstance(value, list):
    return {name for x in value for name in uses(x)}
  if not isinstance(value, dict):
    return set()
  own = {x for k, x in value.items() if k in ('use', 'first', 'second', 'codec') if x == str(x)}
  return own | {name for x in value.values() for name in uses(x)}


def named(registry, tables):
  if registry in PLACES:
    return {at(table, PLACES[registry]) for table in tables if at(table, PLACES[registry])}
  return {name for table in tables for name in uses(table.get('stages', []))}


@pytest.mark.parametrize('registry', sorted(registries()))
def test_every_method_is_in_a_stack(registry):
  missing = registries()[registry] - named(registry, STACKS.values())
  assert not missing, f'no file of tests/oracle/stacks names {missing}, of {registry}'


@pytest.mark.parametrize('registry', sorted({*registries()} - {'MODELS', 'PARTITIONS'}))
def test_every_method_can_be_drawn(registry):
  missing = registries()[registry] - named(registry, METHODS['methods'].values())
  assert not missing, f'tests/oracle/methods.toml names none of {missing}, of {registry}'


def test_there_are_enough_stacks_and_each_has_a_record():
  assert len(STACKS) >= 60
  assert sorted(RECORDED) == sorted(STACKS)
  assert all(x['rounds'] > 0 and len(x['cohorts']) == 16 for x in RECORDED.values())


@pytest.mark.parametrize('name', sorted(STACKS))
def test_a_stack_loads_and_names_registered_methods_only(name):
  path = record.STACKS / f'{name}.toml'
  config = fm.load_config(path)
  assert config.name == name and config.execution.devices in (1, 2)
  assert config.execution.mode != 'auto'  # which is measured
  names = {x.use for x in config.stages} | {config.client.optimizer, config.server.optimizer}
  assert not {x for x in names if ':' in x and not x.startswith('optax:')}
  assert path.read_text().startswith('# ')  # what it is


def test_private_stacks_are_recorded_with_their_epsilon():
  for name, stack in STACKS.items():
    private = 'delta' in stack.get('privacy', {})
    assert (RECORDED[name].get('epsilon') is not None) == private, name


def test_a_budget_ends_a_run_early():
  ended = [x for x in STACKS if RECORDED[x]['rounds'] < STACKS[x]['rounds']]
  assert ended == ['private_budget_ends_early']
  budget = STACKS[ended[0]]['privacy']['target_epsilon']
  assert RECORDED[ended[0]]['epsilon'] <= budget


@pytest.mark.parametrize('name', [x for x in sorted(STACKS) if x.startswith('resumed_')])
def test_a_run_that_was_resumed_gives_what_it_gives_in_one_go(name):
  other = name.removeprefix('resumed_')
  both = [{k: x for k, x in STACKS[n].items() if k != 'execution'} for n in (name, other)]
  assert both[0] == both[1]
  assert RECORDED[name] == RECORDED[other]


# The comparison.


OLD = {
  'rounds': 5, 'train_loss': 2.0, 'test_loss': 1.5, 'test_accuracy': 0.5, 'epsilon': 3.0,
  'delta': 1e-3, 'bytes_up': 800, 'bytes_down': 900, 'cohorts': 'abc',
}  # fmt: skip


@pytest.mark.parametrize(
  'change',
  [
    {},
    {'train_loss': 2.0 * (1 + 9e-5)},
    {'test_loss': 1.5 * (1 - 9e-5)},
    {'test_accuracy': 0.5 + 2 / 359},
    {'epsilon': 3.0 * (1 + 9e-7)},
  ],
)
def test_what_another_machine_may_do_is_no_difference(change):
  assert record.differences(OLD, OLD | change) == []


@pytest.mark.parametrize(
  'change',
  [
    {'train_loss': 2.0 * (1 + 2e-4)},
    {'test_loss': 1.5 * (1 - 2e-4)},
    {'test_loss': math.nan},
    {'test_accuracy': 0.5 - 3 / 359},
    {'epsilon': 3.0 * (1 + 2e-6)},
    {'epsilon': None},
    {'delta': 1.01e-3},
    {'bytes_up': 801},
    {'bytes_down': 899},
    {'cohorts': 'abd'},
    {'rounds': 4},
    {'refused': 'why'},
  ],
)
def test_a_changed_value_is_a_difference(change):
  ((field, value),) = change.items()
  ((said, old, now),) = record.differences(OLD, OLD | change)
  assert (said, old) == (field, OLD.get(field)) and str(now) == str(value)


def test_nobody_arriving_twice_is_no_difference():
  nothing = OLD | {'train_loss': math.nan}
  assert record.differences(nothing, dict(nothing)) == []
  assert record.differences(nothing, OLD)


def test_a_stack_that_is_refused_differs_in_every_field():
  refused = {'refused': 'central must come after weigh'}
  assert len(record.differences(OLD, refused)) == len(OLD) + 1
  assert record.differences(refused, dict(refused)) == []


def test_the_cohorts_are_hashed_by_who_was_selected_and_how_many_arrived():
  metrics = [{'clients': 2, 'examples': 9, 'bytes_up': 8, 'bytes_down': 9, 'train_loss': 1.0}]
  summary = sys.modules['one_stack'].summary
  first = summary(metrics, [[[1, 4, 5], 2, 9]])
  assert first['cohorts'] == summary(metrics, [[[1, 4, 5], 2, 9]])['cohorts']
  assert first['cohorts'] != summary(metrics, [[[1, 4, 6], 2, 9]])['cohorts']
  assert first['cohorts'] != summary(metrics, [[[1, 4, 5], 2, 8]])['cohorts']
  with pytest.raises(RuntimeError, match='must show the cohorts of all 1 rounds'):
    summary(metrics, [])


# Pairs.


def test_methods_are_merged_unless_they_contradict_each_other():
  one, two = {'a': {'x': 1}, 's': [1]}, {'a': {'y': 2}, 's': [2]}
  assert record.merged(one, two, strict=True) == {'a': {'x': 1, 'y': 2}, 's': [1, 2]}
  assert record.merged({'a': {'x': 1}}, {'a': {'x': 2}}, strict=True) is None
  assert record.merged({'a': {'x': 1}}, {'a': {'x': 2}}) == {'a': {'x': 2}}


def test_stages_are_paired_in_both_orders(tmp_path):
  file = tmp_path / 'methods.toml'
  file.write_text(
    'base = {stages = []}\n[methods]\na = {stages = [{use = "a"}]}\nb = {stages = [{use = "b"}]}\n'
    'c = {server = {optimizer = "c"}}\n'
  )
  assert sorted(x.name for x in record.pairs(file)) == ['a-b', 'a-c', 'b-a', 'b-c']
  table = {x.name: tomllib.loads(x.text) for x in record.pairs(file)}
  assert table['b-a'] == {'stages': [{'use': 'b'}, {'use': 'a'}]}
  assert table['a-c'] == {'stages': [{'use': 'a'}], 'server': {'optimizer': 'c'}}


# The files and the command.


def test_a_file_is_written_whole(tmp_path):
  path = tmp_path / 'facts.json'
  record.write(path, {'stacks': {'a': OLD}})
  assert record.read(path) == {'stacks': {'a': OLD}} and list(tmp_path.iterdir()) == [path]


def test_a_check_fails_where_a_record_differs(monkeypatch, capsys, tmp_path):
  file = tmp_path / 'pairs.json'
  facts = {'made_with': record.made_with(), 'stacks': {'a': OLD}, 'configurations': {'a': ''}}
  record.write(file, facts)
  words = ['--check', '--against', str(file)]
  monkeypatch.setattr(record, 'run_all', lambda stacks, jobs: {'a': dict(OLD)})
  assert record.main(words) == 0
  assert 'no difference in 1 stacks' in capsys.readouterr().out
  monkeypatch.setattr(record, 'run_all', lambda stacks, jobs: {'a': OLD | {'cohorts': 'abd'}})
  assert record.main(words) == 1
  said = capsys.readouterr().out
  assert 'cohorts' in said and 'abd' in said and '1 values differ' in said


def test_every_kth_by_name_is_checked(monkeypatch, capsys, tmp_path):
  names = 'abcdefg'
  facts = {'made_with': {}, 'stacks': dict.fromkeys(names, OLD)}
  record.write(tmp_path / 'f.json', facts | {'configurations': dict.fromkeys(names, '')})
  monkeypatch.setattr(record, 'run_all', lambda stacks, jobs: {x.name: OLD for x in stacks})
  words = ['--check', '--against', str(tmp_path / 'f.json'), '--every']
  assert record.main([*words, '3']) == 0 and 'in 3 stacks' in capsys.readouterr().out
  monkeypatch.setattr(record, 'run_all', lambda stacks, jobs: {'a': OLD, 'd': OLD})
  assert record.main([*words, '3']) == 1  # one of them gives nothing
  monkeypatch.setattr(record, 'run_all', lambda stacks, jobs: {x.name: OLD for x in stacks})
  capsys.readouterr()
  assert record.main([*words, '3', '--first', '1']) == 0
  assert 'in 2 stacks' in capsys.readouterr().out
  with pytest.raises(SystemExit):
    record.main([*words, '3', '--first', '3'])
  with pytest.raises(SystemExit):
    record.main([*words, '0'])
  with pytest.raises(SystemExit):
    record.main(['--every', '3'])


def test_bad_words_are_refused(capsys):
  assert record.main(['--check', '--only', 'no_such_stack']) == 2
  assert "--only must fit the name of a stack, got 'no_such_stack'" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    record.main(['--random', '3'])


@pytest.mark.slow
@pytest.mark.parametrize('first', ['0', '3', '6'])
def test_stacks_give_what_was_recorded(first):
  # A third of them, of every family; all of them take as long as a sixth of all other tests.
  command = [sys.executable, SCRIPT, '--check', '--every', '9', '--first', first]
  done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
  assert done.returncode == 0, done.stdout + done.stderr
