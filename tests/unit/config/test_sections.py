"""Every value of every key, at the extremes of its type: a run, or one line that names the key.

The values are generated from the types of the sections, and of the options of every factory. What
is accepted is built, but for the slow test nothing is traced beyond the shapes of a tiny model.
"""

import dataclasses
import inspect
import math
import types
import typing

import pytest

from fedjax_mem.config import build, optimizers, registry
from fedjax_mem.config.load import Config, config_from_dict, to_dict
from fedjax_mem.data.partition import PARTITIONS
from fedjax_mem.models.registry import MODELS
from fedjax_mem.optim import SERVER_OPTIMIZERS
from fedjax_mem.runner.examples import source
from fedjax_mem.runner.prepare import get_ready
from fedjax_mem.runner.segments import Speed
from fedjax_mem.stages.algorithm import ALGORITHMS
from fedjax_mem.stages.select import SAMPLERS, TRACES
from fedjax_mem.stages.weigh import WEIGHINGS

HUGE = 10**400  # more than a float can hold
VALUES = {
  bool: [True, False],
  int: [0, 1, -1, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, HUGE, -HUGE],
  float: [0.0, -0.0, -1.0, 5e-324, 1e-45, 1.0, 1.7e308, math.inf, -math.inf, math.nan, HUGE],
  str: ['', ' ', 'x' * 3000, 'nul\0', 'no_such', 'os:system', 'os:getcwd', 'os:', ':', '../x', 'é'],
  list: [[], [math.nan], [HUGE], ['x'], [[]], [-1.0] * 12, [1.7e308] * 12],
  dict: [{}, {'': 1}, {'num_clients': 5}, {'name': 'x'}, {'use': 'os:getcwd'}, {'x': HUGE}],
}
WRONG = [None, 'text', 1.5, 3, True, [1], {'a': 1}]  # of other types
BASE = {
  'version': 1,
  'rounds': 2,
  'data': {'name': 'digits', 'num_clients': 12},
  'model': {'name': 'logistic'},
  'selection': {'cohort_size': 4},
}


def kinds(hint):
  """Returns the plain types of an annotation."""
  union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
  return [typing.get_origin(x) or x for x in (typing.get_args(hint) if union else (hint,))]


def values(hint):
  """Returns the extreme values of an annotation, each once."""
  found = [x for kind in kinds(hint) for x in VALUES.get(kind, [])] + WRONG
  return list({repr(x): x for x in found}.values())


def cases():
  """Yields (section or '', key, value) for every key of a configuration."""
  for field in dataclasses.fields(Config):
    hint = typing.get_type_hints(Config)[field.name]
    if field.name == 'stages':
      for value in (*WRONG, [{}], [{'use': 'os:getcwd'}], [{'use': 'x', 'options': 3}]):
        yield '', 'stages', value
    elif dataclasses.is_dataclass(hint):
      for name, inner in typing.get_type_hints(hint).items():
        if name != 'section':
          yield from ((field.name, name, value) for value in values(inner))
    else:
      yield from (('', field.name, value) for value in values(hint))


def with_value(section, key, value):
  """Returns the tables of the experiment with one value in them."""
  raw = {name: dict(x) if isinstance(x, dict) else x for name, x in BASE.items()}
  if section:
    raw.setdefault(section, {})[key] = value
    if key == 'chunk':
      raw[section]['mode'] = 'chunk'
    if section == 'data' and key in PARTITION_OF:
      raw[section]['partition'] = PARTITION_OF[key]
  else:
    raw[key] = value
  return raw


PARTITION_OF = {
  'alpha': 'inner_dirichlet',
  'labels_per_client': 'labels_per_client',
  'examples_per_client': 'blocks',
  'min_examples': 'dirichlet',
}


@pytest.fixture(scope='module')
def parts():
  """The data and the model of the experiment."""
  config = config_from_dict(BASE)
  data = build.load_data(config)
  return data, build.build_model(config, data)


def built(config, section, parts):
  """Builds what a section of a configuration decides."""
  data, model = parts
  if section in ('data', 'evaluation'):
    data = build.load_data(config)
  if section == 'model':
    model = build.build_model(config, data)
  build._check_steps(config, data)
  layers = build.build_layers(config, model, data.num_clients, data)
  if section == 'execution':
    try:
      source(data, layers, config.execution.stream_above_mb, 1).close()
    except ValueError as error:
      assert 'execution.stream_above_mb must hold two segments' in str(error)
    speed = Speed(config.execution.segment_seconds)
    for seconds in (1e-3, 1e3):
      speed.saw(1, seconds)
      assert 1 <= speed.rounds() <= 4


def names(line, section, key):
  """Returns whether a message names a key: whole, or its section and the option within."""
  assert '\n' not in line
  whole = f'{section}.{key}' if section else key
  said = (key in line and section in line) or line.startswith((f'{section}: ', f"{section} '"))
  return whole in line or said or f'{section}.options.' in line


@pytest.mark.slow
def test_every_value_of_every_key_gives_a_run_or_names_the_key(parts):
  accepted = refused = 0
  faults = []
  for section, key, value in cases():
    where = f'{section}.{key} = {str(value)[:40]!r}'
    try:
      built(config_from_dict(with_value(section, key, value)), section, parts)
      accepted += 1
    except ValueError as error:
      refused += 1
      if not names(str(error), section, key):
        faults.append(f'{where}: {error}')
    except Exception as error:
      faults.append(f'{where}: {type(error).__name__}: {error}')
  assert faults == []
  assert accepted > 100 and refused > 500


REGISTRIES = {
  'algorithm': ('name', ALGORITHMS),
  'selection': ('name', SAMPLERS),
  'weighting': ('name', WEIGHINGS),
  'model': ('name', MODELS),
  'stages': ('use', registry.LAYERS),
  'availability': ('use', TRACES),
}


OPTIONS = [-1, 0.0, 5e-324, 1.7e308, 2**31, 2**63, HUGE, math.inf, math.nan]


def options():
  """Yields (section, name of a factory, option, value) for every option of every factory."""
  for section, (_, known) in REGISTRIES.items():
    for name, make in known.items():
      for option, parameter in inspect.signature(make).parameters.items():
        kind = type(parameter.default)
        found = [*(OPTIONS if kind in (int, float, type) else []), *VALUES.get(kind, [])[:3]]
        for value in list({repr(x): x for x in [*found, 'text', [1], {'a': 1}]}.values()):
          yield section, name, option, value


def with_option(section, name, option, value):
  """Returns the tables of the experiment with one option of one factory."""
  field, _ = REGISTRIES[section]
  raw = {key: dict(x) if isinstance(x, dict) else x for key, x in BASE.items()}
  if section == 'stages':
    raw['stages'] = [{field: name, 'options': {option: value}}]
  elif section == 'availability':
    raw['selection']['availability'] = {field: name, option: value}
  else:
    raw.setdefault(section, {}).update({field: name, 'options': {option: value}})
  return raw


@pytest.mark.slow
def test_every_option_of_every_factory_gives_layers_or_names_the_section(parts):
  seen, faults = 0, []
  for section, name, option, value in options():
    where = f'{section}.{name}.{option} = {str(value)[:40]!r}'
    seen += 1
    try:
      config = config_from_dict(with_option(section, name, option, value))
      if section == 'model':
        build.build_model(config, parts[0])
      else:
        build.build_layers(config, parts[1], 12, parts[0])
    except ValueError as error:
      line = str(error)
      if section not in line and option not in line:
        faults.append(f'{where}: {line}')
    except Exception as error:
      faults.append(f'{where}: {type(error).__name__}: {error}')
  assert faults == []
  assert seen > 500


@pytest.mark.parametrize('optimizer', SERVER_OPTIMIZERS)
@pytest.mark.parametrize('value', [5e-324, 3.4e38, 0.9999999999999999])
def test_every_server_optimizer_takes_what_its_section_accepts(optimizer, value):
  raw = with_value('server', 'learning_rate', value)
  raw['server'] |= {'optimizer': optimizer, 'tau': value}
  if value < 1:
    raw['server'] |= {'beta1': value, 'beta2': value, 'momentum': value}
  optimizers.server_optimizer(config_from_dict(raw).server)


@pytest.mark.parametrize(
  ('section', 'key'),
  [
    ('client', 'learning_rate'),
    ('client', 'weight_decay'),
    ('server', 'learning_rate'),
    ('server', 'tau'),
  ],
)
def test_what_no_float32_holds_is_refused(section, key):
  with pytest.raises(ValueError, match=f'{section}.{key} must be a number that a float32 holds'):
    config_from_dict(with_value(section, key, 1e39))


@pytest.mark.slow
@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('partition', PARTITIONS)
def test_every_partition_refuses_or_takes_the_extremes(partition):
  extremes = {
    'alpha': (1, 0, 5e-324, 1.7e308, [1.7e308] * 12, [0.0] * 12),
    **dict.fromkeys(('labels_per_client', 'examples_per_client', 'min_examples'), (1, 2**31 - 1)),
    'num_clients': (1, 1439, 2**31 - 1),
  }
  for key, found in extremes.items():
    for value in found:
      raw = with_value('data', key, value)
      raw['data']['partition'] = partition
      try:
        data = build.load_data(config_from_dict(raw))
        assert data.counts.min() >= 1
      except ValueError as error:
        line = str(error)
        assert 'data' in line and '\n' not in line, f'{key} = {value!r}: {line}'


@pytest.mark.slow
def test_what_is_accepted_at_its_most_is_planned():
  """As a run does before its first round: its program is traced on shapes."""
  for section, key, value in (
    ('', 'rounds', 2**31 - 1),
    ('client', 'batch_size', 2**31 - 1),
    ('client', 'learning_rate', 3.4e38),
    ('evaluation', 'every', 2**31 - 1),
    ('evaluation', 'batch_size', 2**31 - 1),
    ('execution', 'chunk', 2**31 - 1),
    ('execution', 'stream_above_mb', 1.7e308),
  ):
    raw = with_value(section, key, value)
    raw.setdefault('execution', {})['devices'] = 1
    get_ready(config_from_dict(raw), None, {})
  steps = with_value('client', 'epochs', (2**31 - 1) // 6)  # 6 batches of 20 of 120 examples
  get_ready(config_from_dict(steps), None, {})


FACTORIES = """
import typing
from fedjax_mem.core import Layer
from fedjax_mem.models.base import Model

if typing.TYPE_CHECKING:
  from nowhere import Nothing

called = []

def says_text(**options) -> str:
  called.append('says_text')

def says_model(**options) -> Model:
  called.append('says_model')

def says_unknown(**options) -> 'Nothing':
  called.append('says_unknown')
  return 3

def says_nothing(**options):
  called.append('says_nothing')
  return 3

class Thing:
  def __init__(self, **options):
    called.append('Thing')
"""
KEYS = ('data.name', 'model.name', 'algorithm.name', 'selection.name', 'weighting.name',
        'client.optimizer', 'server.optimizer', 'selection.availability.use',
        'stages[0].use')  # fmt: skip


@pytest.mark.parametrize('key', KEYS)
def test_a_factory_of_something_else_is_refused(key, parts, layers):
  (layers / 'makers.py').write_text(FACTORIES)
  import makers

  for name in ('says_text', 'says_model', 'says_unknown', 'says_nothing', 'Thing'):
    if (key, name) == ('model.name', 'says_model'):
      continue
    raw = to_dict(config_from_dict(BASE))
    place, *fields = raw, *key.split('.')
    if key.startswith('stages'):
      raw['stages'] = [{'use': f'makers:{name}'}]
    else:
      for field in fields[:-1]:
        place = place.setdefault(field, {})
      place[fields[-1]] = f'makers:{name}'
    makers.called.clear()
    with pytest.raises(ValueError) as error:
      built(config_from_dict(raw), key.partition('.')[0], parts)
    assert str(error.value).startswith(f'{key} must name a factory '), error.value
    # What says itself that it makes something else never runs.
    assert makers.called == ([] if name in ('says_text', 'says_model', 'Thing') else [name]) or (
      key == 'client.optimizer' and makers.called == []  # it does not take a learning rate
    )
