"""The configuration: strict reading, exact writing, a hash of what changes results."""

import dataclasses
import math

import pytest

from fedjax_mem.config import load as config_lib
from fedjax_mem.config.load import (
  ClientSection,
  Config,
  DataSection,
  EvaluationSection,
  ModelSection,
  SelectionSection,
  ServerSection,
  StageSection,
  WeightingSection,
  config_hash,
  load_config,
  to_toml,
)
from fedjax_mem.config.places import DeploySection, ExecutionSection

TEXT = """
version = 1
rounds = 20
seed = 7

[data]
name = 'digits'
partition = 'dirichlet'
num_clients = 50
alpha = 1  # an integer where a number is wanted

[model]
name = 'mlp'
options = { hidden = [64, 32], dropout = 0.5 }

[client]
learning_rate = 0.1

[selection]
cohort_size = 10

[[stages]]
use = 'my.package:noise'
options = { stddev = 0.1 }
"""


@pytest.fixture
def path(tmp_path):
  file = tmp_path / 'small.toml'
  file.write_text(TEXT)
  return file


def make(**changes) -> Config:
  values = {
    'rounds': 3,
    'data': DataSection(name='digits', num_clients=10),
    'model': ModelSection(name='mlp'),
    'selection': SelectionSection(cohort_size=2),
  }
  return Config(**{**values, **changes})


def refused(path, text: str) -> str:
  path.write_text(text)
  with pytest.raises(ValueError) as error:
    load_config(path)
  message = str(error.value)
  assert '\n' not in message
  return message


def test_a_file_is_read_with_defaults(path):
  config = load_config(path)
  assert (config.name, config.seed, config.rounds) == ('small', 7, 20)
  assert config.data.alpha == 1.0 and isinstance(config.data.alpha, float)
  assert config.model.options == {'hidden': [64, 32], 'dropout': 0.5}
  assert config.server == ServerSection(optimizer='sgd', learning_rate=1.0)
  assert config.stages == (StageSection(use='my.package:noise', options={'stddev': 0.1}),)
  assert config.execution == ExecutionSection()


FULL = make(
  name='a-b_c.1',
  seed=2**32 - 1,
  data=DataSection(
    name='x/y', partition='labels', num_clients=10, labels_per_client=2, alpha=[1e-22, 1],
    partition_seed=0, options={'a': {'b': [1, [2.5, 'x"\n\\'], True]}, 'inf': math.inf},
  ),
  client=ClientSection(learning_rate=0.1 + 0.2, learning_rate_schedule='cosine', decay_rounds=9),
  server=ServerSection(optimizer='fedyogi', tau=1e-9, learning_rate=1e22),
  weighting=WeightingSection(name='capped', options={'cap': 3}),
  evaluation=EvaluationSection(every=7),
  stages=(
    StageSection(use='a', before_algorithm=True),
    StageSection(use='b.c:d', options={'k': 1}),
  ),
  execution=ExecutionSection(devices=2, mode='chunk', chunk=5, stream_above_mb=100),
  deploy=DeploySection(round_timeout=2.5, min_clients=2),
)  # fmt: skip


@pytest.mark.parametrize('config', [make(), FULL])
def test_writing_and_reading_give_an_equal_config(tmp_path, config):
  file = tmp_path / 'other-name.toml'
  file.write_text(to_toml(config))
  again = load_config(file)
  assert again == config
  assert to_toml(again) == to_toml(config)
  assert config_hash(again) == config_hash(config)


def test_overrides(path):
  config = load_config(
    path,
    [
      'server.learning_rate=0.1', 'server.optimizer = fedadam', 'name="x"', 'data.alpha=',
      'model.options.hidden=[8]', 'model.options.act=relu', 'stages.0.options.stddev=2',
      'execution.devices=1', 'evaluation={every = 5}',
    ],
  )  # fmt: skip
  assert config.server == ServerSection(optimizer='fedadam', learning_rate=0.1)
  assert config.name == 'x'
  assert config.data.alpha is None
  assert config.model.options == {'hidden': [8], 'dropout': 0.5, 'act': 'relu'}
  assert config.stages[0].options == {'stddev': 2}
  assert config.execution.devices == 1
  assert config.evaluation.every == 5


@pytest.mark.parametrize(
  ('override', 'words'),
  [
    ('server.lerning_rate=1', ["server.lerning_rate", "Did you mean 'learning_rate'?"]),
    ('sever.learning_rate=1', ['sever', "Did you mean 'server'?"]),
    ('cohort_size=3', ['[selection]']),
    ('client.learning_rate=fast', ["client.learning_rate must be a number, got 'fast'."]),
    ('client.epochs=1\nbatch_size=2', ['client.epochs must be an integer']),
    ('rounds', ["'section.key=value'", "'rounds'"]),
    ('.x=1', ["'section.key=value'"]),
    ('seed.x=1', ['seed must be a section']),
    ('stages.1.use=x', ["one of the 1 elements of stages", "'1'"]),
    ('stages.0.uze=x', ['stages[0].uze', "Did you mean 'use'?"]),
    ('server=3', ['server must be a table, got 3.']),
    ('data.alpha=[1.0, -1]', ['data.alpha[1] must be a finite number >= 0, got -1.']),
    ('data.alpha=many', ["data.alpha must be a number or an array, got 'many'."]),
    ('evaluation.clients=1', ['evaluation.clients must be a number in [0, 1), got 1.0.']),
    ('data.name=3', ['data.name must be a string, got 3.']),
    ('version=2', ['version must be 1', 'got 2']),
  ],
)  # fmt: skip
def test_bad_overrides_are_refused(path, override, words):
  with pytest.raises(ValueError) as error:
    load_config(path, [override])
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  ('old', 'new', 'words'),
  [
    ('learning_rate = 0.1', 'learning_rat = 0.1', ["[client]", "Did you mean 'learning_rate'?"]),
    ('learning_rate = 0.1', 'zzz = 0.1', ['client.zzz', 'Known keys: epochs']),
    ('learning_rate = 0.1', "learning_rate = 'fast'",
     ["client.learning_rate must be a number, got 'fast'."]),
    ('learning_rate = 0.1', 'learning_rate = true', ['must be a number, got True.']),
    ('learning_rate = 0.1', 'epochs = 1.0', ['client.epochs must be an integer, got 1.0.']),
    ('learning_rate = 0.1', 'epochs = true', ['client.epochs must be an integer, got True.']),
    ('[client]', '[cleint]', ["Did you mean 'client'?"]),
    ('[[stages]]', '[stages]', ['stages must be an array of tables']),
    ("'digits'", '1979-05-27', ['data.name must be a string']),
    ('cohort_size = 10', '', ['selection.cohort_size must be given']),
    ('[selection]', '[selektion]', ["Did you mean 'selection'?"]),
    ('version = 1', 'version = 2', ['version must be 1', 'got 2.']),
    ('version = 1', 'version = 2\nunheard_of = 1', ['version must be 1', 'got 2.']),
    ('version = 1', '', ['add `version = 1`']),
    ('stddev = 0.1', 'day = 1979-05-27', ['stages.options.day must be']),
    ('[[stages]]', '[privacy]\n[[stages]]', ["privacy must set 'delta'", 'got an empty table']),
  ],
)  # fmt: skip
def test_bad_files_are_refused_with_one_line(path, old, new, words):
  assert old in TEXT
  message = refused(path, TEXT.replace(old, new))
  for word in words:
    assert word in message


def test_a_syntax_error_names_file_and_line(path):
  message = refused(path, TEXT.replace('seed = 7', 'seed = = 7'))
  assert str(path) in message and 'line 4' in message


def test_unreadable_files(tmp_path, path):
  with pytest.raises(FileNotFoundError, match=r"Did you mean 'small\.toml'\?"):
    load_config(tmp_path / 'smal.toml')
  with pytest.raises(ValueError, match='readable TOML'):
    load_config(tmp_path)
  assert 'empty' in refused(path, ' \n')
  path.write_bytes(b'\xff\xfe\x00')
  with pytest.raises(ValueError, match='readable TOML'):
    load_config(path)


RATES = [
  (ClientSection, {}, 'learning_rate'),
  (ClientSection, {}, 'momentum'),
  (ClientSection, {}, 'weight_decay'),
  (ClientSection, {}, 'decay_rate'),
  (ClientSection, {}, 'final_fraction'),
  (ServerSection, {}, 'learning_rate'),
  (ServerSection, {}, 'momentum'),
  (ServerSection, {}, 'beta1'),
  (ServerSection, {}, 'beta2'),
  (ServerSection, {}, 'tau'),
  (SelectionSection, {'cohort_size': 1}, 'dropout'),
  (DataSection, {'name': 'digits'}, 'alpha'),
  (DataSection, {'name': 'digits'}, 'alpha'),
  (ExecutionSection, {}, 'segment_seconds'),
  (ExecutionSection, {}, 'checkpoint_every_seconds'),
  (ExecutionSection, {}, 'stream_above_mb'),
  (DeploySection, {}, 'round_timeout'),
]


@pytest.mark.parametrize('value', [math.nan, math.inf, -0.5, '1', True])
@pytest.mark.parametrize(('kind', 'rest', 'field'), RATES)
def test_bad_rates_are_refused(kind, rest, field, value):
  with pytest.raises(ValueError, match=rf'{kind.section}\.{field} must be .*, got {value!r}'):
    kind(**rest, **{field: value})


@pytest.mark.parametrize(
  ('kind', 'rest', 'changes'),
  [
    (ClientSection, {}, {'batch_size': 0}),
    (ClientSection, {}, {'epochs': -1}),
    (ClientSection, {}, {'learning_rate': 0}),
    (ClientSection, {}, {'momentum': 1.0}),
    (ClientSection, {}, {'learning_rate_schedule': 'cosin'}),
    (ClientSection, {}, {'optimizer': 'adam'}),
    (ServerSection, {}, {'optimizer': 'fedadm'}),
    (ServerSection, {}, {'optimizer': 'pack.age:'}),
    (ServerSection, {}, {'optimizer': ''}),
    (SelectionSection, {}, {'cohort_size': 0}),
    (SelectionSection, {'cohort_size': 1}, {'dropout': 1.0}),
    (ExecutionSection, {}, {'devices': 'all'}),
    (ExecutionSection, {}, {'devices': 0}),
    (ExecutionSection, {}, {'mode': 'fast'}),
    (ExecutionSection, {}, {'keep_checkpoints': 1}),
    (DeploySection, {}, {'round_timeout': 0}),
    (DeploySection, {}, {'min_clients': 0}),
    (ModelSection, {'name': 'mlp'}, {'options': {'x': math.nan}}),
    (ModelSection, {'name': 'mlp'}, {'options': {'x': None}}),
    (ModelSection, {}, {'name': '../x:y'}),
  ],
)
def test_bad_values_are_refused(kind, rest, changes):
  ((field, value),) = changes.items()
  shown = value['x'] if isinstance(value, dict) else value
  with pytest.raises(ValueError) as error:
    kind(**{**rest, **changes})
  assert f'{kind.section}.{field}' in str(error.value)
  assert f'got {shown!r}' in str(error.value)


@pytest.mark.parametrize(
  'changes',
  [
    {'rounds': 0},
    {'seed': -1},
    {'seed': 2**32},
    {'name': '../up'},
    {'name': ''},
    {'name': '<script>'},
    {'version': 0},
    {'stages': ('top_k',)},
    {'selection': SelectionSection(cohort_size=11)},
    {'deploy': DeploySection(min_clients=3)},
  ],
)
def test_bad_experiments_are_refused(changes):
  with pytest.raises(ValueError, match=f'{next(iter(changes))}.* must be .*, got'):
    make(**changes)


def test_a_factory_may_stand_for_a_name():
  assert ServerSection(optimizer='pkg.mod:make').optimizer == 'pkg.mod:make'


def test_options_are_the_configs_own():
  options = {'hidden': (64,)}
  model = ModelSection(name='mlp', options=options)
  options['hidden'] = (1,)
  assert model.options == {'hidden': [64]}


def test_the_hash_covers_what_changes_results_and_nothing_else():
  base = config_hash(make())
  assert len(base) == 8 and int(base, 16) >= 0
  same = [
    make(name='other'),
    make(execution=ExecutionSection(mode='loop', devices=3, stream_above_mb=1)),
    make(deploy=DeploySection(round_timeout=3, min_clients=2)),
    make(server=ServerSection(learning_rate=1)),
    make(client=ClientSection(dtype='float32', remat=False, accumulate=1)),
  ]
  assert {config_hash(x) for x in same} == {base}
  other = [
    make(seed=1),
    make(noise_seed=0),
    make(rounds=4),
    make(model=ModelSection(name='mlp', options={'hidden': [3]})),
    make(client=ClientSection(learning_rate=0.2)),
    make(client=ClientSection(dtype='bfloat16')),
    make(client=ClientSection(remat=True)),
    make(client=ClientSection(accumulate=2)),
    make(stages=(StageSection(use='a'),)),
    make(stages=(StageSection(use='a', before_algorithm=True),)),
  ]
  assert len({base, *map(config_hash, other)}) == len(other) + 1


def test_noise_has_a_seed_only_where_it_is_given(path):
  assert load_config(path).noise_seed is None and 'noise_seed' not in to_toml(load_config(path))
  seeded = load_config(path, ['noise_seed=3'])
  assert seeded.noise_seed == 3 and 'noise_seed = 3' in to_toml(seeded)
  assert load_config(path, ['noise_seed=3', 'noise_seed=']) == load_config(path)
  with pytest.raises(ValueError, match=r'noise_seed must be .*, got -1'):
    load_config(path, ['noise_seed=-1'])


def test_with_another_seed_the_noise_has_another_if_it_has_one():
  assert make().with_seed(5) == make(seed=5)
  assert make(noise_seed=0).with_seed(5) == make(seed=5, noise_seed=5)


def test_the_hash_does_not_change_between_releases():
  # Folders of finished runs are found by it.
  assert config_hash(make()) == '9fa53753'


def test_every_field_is_documented():
  for name, kind in vars(config_lib).items():
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
      for field in dataclasses.fields(kind):
        assert f'{field.name}: ' in (kind.__doc__ or ''), (name, field.name)


def test_other_values_of_some_keys_leave_the_experiment_as_it_was():
  config = make(stages=(StageSection(use='top_k', options={'fraction': 0.5}),))
  found = config_lib.with_values(config, {'stages.0.options.fraction': 0.1, 'client.momentum': 0.5})
  assert found.stages[0].options == {'fraction': 0.1} and found.client.momentum == 0.5
  assert config.stages[0].options == {'fraction': 0.5} and config.client.momentum == 0.0
  with pytest.raises(ValueError, match='must number one of the 1 elements'):
    config_lib.with_values(config, {'stages.1.use': 'top_k'})


def test_a_file_with_a_byte_order_mark_is_read(tiny):
  plain = load_config(tiny)
  tiny.write_bytes(b'\xef\xbb\xbf' + tiny.read_bytes())
  assert load_config(tiny) == plain
