"""Models whose parameters are divided over devices: against one device, bytes, runs that resume."""

import functools
import json

import jax
import numpy as np
import optax
import pytest
from reference import tiny

import fedjax_mem as fm
from fedjax_mem.core import stack_clients, tree
from fedjax_mem.report.tracker import MetricsWriter
from fedjax_mem.runner.loop import resume, run
from fedjax_mem.stages import algorithm, compress, select, weigh

pytestmark = [pytest.mark.standard_promotion, pytest.mark.usefixtures('undrawn')]
BIG = (pytest.mark.slow, pytest.mark.devices(8))
LENGTH, LETTERS = 16, 90
MESHES = [pytest.param(8, n, id=f'{8 // n} x {n}', marks=BIG) for n in (2, 4)]


@functools.cache
def model():
  return fm.models.build('transformer', (LENGTH,), LETTERS, width=512, heads=8, blocks=2)


@functools.cache
def initial():
  return model().init(jax.random.key(0))


@functools.cache
def texts():
  """Returns clients with 3 to 9 lines each of a text that repeats itself, next letter by letter."""
  rng = np.random.default_rng(0)
  letters = rng.integers(1, LETTERS, 40)
  made = []
  for lines in (4, 9, 3, 6):
    starts = rng.integers(0, 40, lines)
    text = letters[(starts[:, None] + np.arange(LENGTH + 1)) % 40].astype('i4')
    made.append({'x': text[:, :-1], 'y': text[:, 1:]})
  return stack_clients(made)


def simulation(devices, shared, *more, **given):
  rate = {'learning_rate': 0.1, 'batch_size': 4}
  layers = fm.compose(
    algorithm.fedavg(model().loss, **rate, **given),
    select.uniform(4, 4),
    weigh.by_examples(),
    *more,
  )
  rules = model().rules if shared > 1 else ()
  execution = fm.Execution(devices=devices, model_devices=shared, rules=rules)
  return fm.simulate(layers, initial(), texts(), seed=1, execution=execution)


@functools.cache
def trained(devices, shared):
  sim = simulation(devices, shared)
  state, _ = sim.run(sim.init(initial()), 1)
  state, _ = sim.run(state, 2)
  assert sim.segment._cache_size() == 1
  return tiny.vec(tiny.host(state.params))


@pytest.mark.parametrize('devices, shared', MESHES)
def test_three_rounds_are_those_of_one_device(devices, shared):
  one = trained(1, 1)
  assert one.size >= 5_000_000
  start = tiny.vec(tiny.host(initial()))
  assert np.linalg.norm(one - start) > 1e-3 * np.linalg.norm(start)
  many = trained(devices, shared)
  assert np.linalg.norm(many - one) <= 1e-6 * np.linalg.norm(one)


def held(values):
  """Returns the most bytes that a device holds of the arrays."""
  each = dict.fromkeys(jax.devices(), 0)
  for x in jax.tree.leaves(values):
    for shard in x.addressable_shards:
      each[shard.device] += shard.data.nbytes
  return max(each.values())


@pytest.mark.parametrize('devices, shared', MESHES)
def test_a_device_holds_its_part_of_parameters_moments_and_residuals(devices, shared):
  feedback = compress.error_feedback(compress.top_k(fraction=0.01))
  sim = simulation(devices, shared, feedback, server_optimizer=optax.adam(1e-3))
  first = sim.init(initial())
  kinds = ['params', 'servers', 'clients']
  each = {}
  for kind in kinds:
    whole = tree.nbytes(getattr(first, kind))
    each[kind] = held(getattr(first, kind)) * shared / whole
    rows = devices // shared if kind == 'clients' else 1  # a group has the rows of its clients
    assert each[kind] * rows <= 1.15, (kind, each)
  state, _ = sim.run(first, 1)
  assert [held(getattr(state, x)) for x in kinds] == [
    held(getattr(sim.init(initial()), x)) for x in kinds
  ]


SHARED = (
  *('execution.devices=2', 'execution.model_devices=2', 'execution.rules=[["kernel", 0]]'),
  *('rounds=4', 'execution.max_segment_rounds=1', 'execution.checkpoint_every_seconds=0'),
)


class Killed(BaseException):
  """Stands for a death that nothing in the package may catch."""


def records(result):
  return [{k: v for k, v in x.items() if k != 'seconds'} for x in result.metrics]


@pytest.mark.devices(2)
def test_a_run_records_how_parameters_are_divided_and_resumes_so(make, tmp_path, monkeypatch):
  whole = run(make(*SHARED), tmp_path / 'whole', quiet=True)
  said = json.loads((whole.folder / 'manifest.json').read_text())['execution']
  assert (said['devices'], said['model_devices'], said['rules']) == (2, 2, [['kernel', 0]])
  assert 'on each of 1 group(s) of 2 devices' in said['words']
  one = run(make('rounds=4'), tmp_path / 'one', quiet=True)
  tiny.assert_close(whole.params, one.params, atol=1e-5)
  assert one.folder.name == whole.folder.name  # no part of the configuration's hash

  write = MetricsWriter.write

  def stopped(self, record):
    write(self, record)
    if record['round'] == 2:
      raise Killed

  monkeypatch.setattr(MetricsWriter, 'write', stopped)
  with pytest.raises(Killed):
    run(make(*SHARED), tmp_path / 'again', quiet=True)
  monkeypatch.undo()
  (folder,) = (tmp_path / 'again').iterdir()
  # What was recorded counts, not what the file says now.
  again = resume(folder, quiet=True)
  assert len(again.metrics) == 4
  tiny.assert_same_bits(again.params, whole.params)
  assert records(again) == records(whole)


@pytest.mark.parametrize(
  'overrides, words',
  [
    (['execution.devices=2', 'execution.model_devices=2'], 'rules must say how parameters are'),
    (
      ['execution.devices=3', 'execution.model_devices=2'],
      'must be a divisor of execution.dev',
    ),
    (['execution.rules=[["kernel", 0.5]]'], r'execution.rules\[0\] must name a dimension'),
    ([*SHARED, 'execution.rules=[["other", 0]]'], 'must each be found in the path of a parameter'),
    ([*SHARED, 'execution.rules=[["bias", 0]]', 'execution.model_devices=3'], 'divisor of'),
  ],
)
@pytest.mark.devices(2)
def test_what_does_not_fit_is_refused_before_there_is_a_folder(make, tmp_path, overrides, words):
  with pytest.raises(ValueError, match=words):
    run(make(*overrides), tmp_path / 'runs', quiet=True)
  assert not (tmp_path / 'runs').exists()
