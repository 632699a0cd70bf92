"""Names that import code: under `validate.only_from` no text of others imports what is not listed.

The keys are not listed here: every string and every option of every recorded experiment is tried,
and each that imports a module outside of the context must be refused within it.
"""

import contextlib
import copy
import inspect
import json
import os
import sys
import tomllib
from pathlib import Path

import pytest

from fedjax_mem import models
from fedjax_mem.account.ledger import Ledger
from fedjax_mem.config import build, registry
from fedjax_mem.config.load import config_from_dict, config_hash
from fedjax_mem.core import Draws, validate
from fedjax_mem.data import OWN
from fedjax_mem.mechanisms import Gaussian
from fedjax_mem.stages.algorithm import ALGORITHMS
from fedjax_mem.stages.select import SAMPLERS
from fedjax_mem.stages.weigh import WEIGHINGS

STACKS = sorted((Path(__file__).parents[1] / 'oracle' / 'stacks').glob('*.toml'))
PROBE = 'names_of_code_probe'
# Sections with a name and options: (section, key of the name) -> the names that there are.
NAMED = {
  ('model', 'name'): models.registry.MODELS,
  ('algorithm', 'name'): ALGORITHMS,
  ('selection', 'name'): SAMPLERS,
  ('weighting', 'name'): WEIGHINGS,
}
# What is known to take names, by the last parts of the key.
TAKERS = {
  'model.name',
  'algorithm.name',
  'selection.name',
  'weighting.name',
  'client.optimizer',
  'server.optimizer',
  'data.name',
  'availability.use',
  'stages.use',
  'options.codec',
  'options.first',
  'options.second',
  'options.mechanism',
}


@pytest.fixture
def probe(tmp_path, monkeypatch):
  """Returns a function: whether the probe's module was imported since the last call."""
  seen = tmp_path / 'seen'
  (tmp_path / f'{PROBE}.py').write_text(
    f'open({str(seen)!r}, "w").close()\n\ndef make(*args, **kwargs):\n  raise ValueError("made")\n'
  )
  monkeypatch.syspath_prepend(str(tmp_path))

  def imported():
    found = seen.exists()
    seen.unlink(missing_ok=True)
    sys.modules.pop(PROBE, None)
    return found

  yield imported
  imported()


def built(raw):
  """Builds what names can be in: the data of a foreign name, the model, the layers."""
  config = config_from_dict(raw)
  if ':' in config.data.name:
    return build.load_data(config)
  like = build.datasets.load('digits', num_clients=config.data.num_clients or 30)
  return build.build_layers(config, build.build_model(config, like), like.num_clients)


def replaced(raw):
  """Yields (key, table, last key) of each string of an experiment and of each option that it has.

  Options that are not given are those of the factory's signature.
  """

  def walk(table, where):
    for key, value in list(table.items()):
      if isinstance(value, dict):
        yield from walk(value, f'{where}{key}.')
      elif isinstance(value, str):
        yield f'{where}{key}', table, key

  for name, section in raw.items():
    if name == 'stages':
      for stage in section:
        yield from walk(stage, 'stages.')
        yield from options(stage, registry.LAYERS[stage['use']], f'{stage["use"]}.')
    elif isinstance(section, dict):
      yield from walk(section, f'{name}.')
      if name in ('client', 'server'):  # a name at its default
        yield f'{name}.optimizer', section, 'optimizer'
  for (section, field), known in NAMED.items():
    if raw.get(section, {}).get(field) in known:
      yield from options(raw[section], known[raw[section][field]], f'{raw[section][field]}.')


def options(section, make, where):
  for name in inspect.signature(make).parameters:
    yield f'{where}options.{name}', section.setdefault('options', {}), name


def attempts():
  """Yields (key, experiment with the probe's name in it), each key of a factory once."""
  done = set()
  for path in STACKS:
    text = path.read_text()
    for number, (key, _, _) in enumerate(replaced(tomllib.loads(text))):
      if key in done:
        continue
      done.add(key)
      for value in (f'{PROBE}:make', {'use': f'{PROBE}:make'}):
        raw = tomllib.loads(text)
        _, table, last = list(replaced(raw))[number]
        table[last] = value
        yield key, raw


def refused(raw):
  """Returns the message of the error of building an experiment, or None."""
  with contextlib.redirect_stdout(None):
    try:
      built(copy.deepcopy(raw))
    except Exception as error:  # a number replaced by a name may fail in any way
      return str(error)
  return None


@pytest.mark.slow
def test_no_key_of_any_experiment_imports_what_is_not_listed(probe):
  takers = set()
  for key, raw in attempts():
    refused(raw)
    takes = probe()
    with validate.only_from([]):
      message = refused(raw)
    assert not probe(), key
    assert takes == ('--allow' in str(message)), (key, message)
    if takes:
      whole = key.removesuffix('.use') if '.options.' in key else key
      takers.add(next((x for x in TAKERS if whole.endswith(x)), key))
      with validate.only_from([PROBE]):
        refused(raw)
      assert probe(), key
  assert takers == TAKERS


def tiny(**changes):
  raw = {
    'rounds': 1,
    'data': {'name': 'digits', 'num_clients': 4},
    'model': {'name': 'logistic'},
    'selection': {'cohort_size': 2},
  }
  return raw | {
    key: raw.get(key, {}) | x if isinstance(x, dict) else x for key, x in changes.items()
  }


def stage(use, **given):
  return {'stages': [{'use': use, 'options': given}]}


BAD = 'os:system'
NOISE = {'l2_clip_norm': 1.0, 'noise_multiplier': 1.0}
EVERYWHERE = {
  'data.name': ({'data': {'name': BAD}}, 'data.name'),
  'model.name': ({'model': {'name': BAD}}, 'model.name'),
  'algorithm.name': ({'algorithm': {'name': BAD}}, 'algorithm.name'),
  'selection.name': ({'selection': {'name': BAD}}, 'selection.name'),
  'weighting.name': ({'weighting': {'name': BAD}}, 'weighting.name'),
  'client.optimizer': ({'client': {'optimizer': BAD}}, 'client.optimizer'),
  'server.optimizer': ({'server': {'optimizer': BAD}}, 'server.optimizer'),
  'availability': ({'selection': {'availability': {'use': BAD}}}, 'selection.availability.use'),
  'stages': (stage(BAD), r'stages\[0\].use'),
  'codec': (stage('error_feedback', codec=BAD), r'stages\[0\]: codec'),
  'codec, a table': (stage('downlink', codec={'use': BAD}), r'stages\[0\]: codec'),
  'two deep': (
    stage('error_feedback', codec={'use': 'chain', 'first': 'rotate', 'second': {'use': BAD}}),
    r'stages\[0\]: second',
  ),
  'mechanism': (stage('central', mechanism=BAD, **NOISE), r'stages\[0\]: mechanism'),
}


@pytest.mark.parametrize('changes, key', EVERYWHERE.values(), ids=EVERYWHERE)
def test_a_command_in_place_of_a_name_is_refused_and_not_called(changes, key, monkeypatch):
  called = []
  monkeypatch.setattr(os, 'system', lambda *args, **kwargs: called.append(args))
  with (
    validate.only_from([]),
    pytest.raises(
      ValueError, match=f'^{key} must be a name of .*: start the client with --allow os'
    ),
  ):
    built(tiny(**changes))
  assert called == []


def test_the_class_that_a_ledger_names(tmp_path, probe):
  ledger = Ledger.plan(
    Draws('poisson', 100, 10, 20), 'central', Gaussian(1.0), rounds=2, delta=1e-5
  )
  path = tmp_path / 'ledger.json'
  ledger.save(path)
  with validate.only_from([]):  # those of this package are known
    assert Ledger.load(path).entry == ledger.entry
  data = json.loads(path.read_text())
  data['entry']['mechanism']['class'] = f'{PROBE}:make'
  path.write_text(json.dumps(data))
  with validate.only_from([]), pytest.raises(ValueError, match=f'--allow {PROBE} if you trust it'):
    Ledger.load(path)
  assert not probe()
  with validate.only_from([PROBE]), pytest.raises(ValueError, match='Mechanism'):
    Ledger.load(path)
  assert probe()


@pytest.mark.parametrize('name', ['/etc', '../../etc', 'a/../../b', '..', '.', ''])
def test_a_data_set_is_named_and_no_folder_elsewhere(name, tmp_path):
  words = r'^data must be the name of a data set, not a path' if name else r'^data.name must be a'
  with pytest.raises(ValueError, match=words):
    build.load_data(config_from_dict(tiny(data={'name': name})), str(tmp_path))


@pytest.mark.parametrize('reader', sorted(OWN))
def test_who_sends_a_job_chooses_no_files_of_this_machine(reader, tmp_path):
  raw = tiny(data={'name': reader, 'options': {'path': str(tmp_path), 'label': 'y'}})
  with (
    validate.only_from([]),
    pytest.raises(ValueError, match=r'^data.name must name no files of this machine.*--data\.$'),
  ):
    build.load_data(config_from_dict(raw))
  given = tiny(model={'name': 'logistic', 'init': str(tmp_path / 'a.msgpack')})
  with validate.only_from([]), pytest.raises(ValueError, match=r'model.init must name no files'):
    config_hash(config_from_dict(given))


@pytest.mark.parametrize('option', ['data_dir', 'partition', 'name'])
def test_options_of_the_data_set_no_folder(option):
  raw = tiny(data={'options': {option: '/etc'}})
  with pytest.raises(ValueError, match=rf'^data\.options\.{option} must be left out'):
    build.load_data(config_from_dict(raw))
