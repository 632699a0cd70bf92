"""A model of five million parameters, divided over devices: against one device, and its bytes."""

import functools

import jax
import numpy as np
import optax
import pytest
from reference import tiny

import fedjax_mem as fm
from fedjax_mem.core import stack_clients, tree
from fedjax_mem.stages import algorithm, compress, select, weigh

pytestmark = [pytest.mark.slow, pytest.mark.devices(8), pytest.mark.standard_promotion]
LENGTH, LETTERS = 16, 90
MESHES = {'4 x 2': (8, 2), '2 x 4': (8, 4)}


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


@pytest.mark.parametrize('devices, shared', MESHES.values(), ids=MESHES)
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


@pytest.mark.parametrize('devices, shared', MESHES.values(), ids=MESHES)
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
  print(each)
  state, _ = sim.run(first, 1)
  assert [held(getattr(state, x)) for x in kinds] == [
    held(getattr(sim.init(initial()), x)) for x in kinds
  ]
