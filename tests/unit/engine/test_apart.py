"""Examples divided over the devices: the same rounds, a part on each device, any cohort works."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem.core import compose, stack_clients
from fedjax_mem.engine import Execution, apart, simulate
from fedjax_mem.engine.mesh import AXIS, make_mesh
from fedjax_mem.kernels.loops import across
from fedjax_mem.optim import sgd
from fedjax_mem.stages.algorithm import fedavg, fedsgd, scaffold
from fedjax_mem.stages.select import uniform
from fedjax_mem.stages.weigh import by_examples

pytestmark = pytest.mark.devices(2)
SEVENTEEN = tiny.client_data([1 + (5 * i) % 7 for i in range(17)])
EQUAL = tiny.client_data([4] * 16)
SCHEMES = {
  'loop': {'mode': 'loop', 'devices': tiny.SOME},
  'chunk': {'mode': 'chunk', 'chunk': 2, 'devices': 2},
  'vmap': {'mode': 'vmap', 'devices': tiny.SOME},
  'slack': {'mode': 'chunk', 'chunk': 2, 'devices': 2, 'slack': 3},
}


def layers(data, cohort, algorithm=fedavg):
  held = {'total_weight': float(sum(len(x['y']) for x in data))} if algorithm is scaffold else {}
  train = algorithm(tiny.loss, learning_rate=0.1, batch_size=2, epochs=2, **held)
  return compose(train, uniform(len(data), cohort), by_examples())


def result(stack, clients, rounds=3, **execution):
  start = tiny.initial()
  options = Execution(pool=execution.pop('pool', False), **execution)
  sim = simulate(
    stack, start, tiny.population(clients), seed=3, execution=options, max_rounds=rounds
  )
  state, rows = sim.run(sim.init(start), rounds)
  return sim, state, rows


@pytest.mark.first(2)
@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('data', [SEVENTEEN, EQUAL], ids=['ragged', 'equal'])
@pytest.mark.parametrize('algorithm', [fedavg, scaffold])
def test_rounds_are_those_of_whole_examples(scheme, data, algorithm):
  stack = layers(data, 9, algorithm)
  _, whole, rows = result(stack, data, mode='loop', devices=1)
  sim, divided, seen = result(stack, data, data='divided', **SCHEMES[scheme])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), divided, whole)
  moved = seen.pop('moved')
  np.testing.assert_array_equal(np.sort(seen.pop('ids'))[:, -9:], np.sort(rows['ids']))
  assert set(seen) == set(rows) - {'ids'} and (moved >= 0).all()
  held = sim.population.arrays['x']
  assert held.addressable_shards[0].data.nbytes < 0.75 * sum(x['x'].nbytes for x in data)


@pytest.mark.parametrize('execution', [{'mode': 'loop'}, {'mode': 'vmap'}])
def test_a_cohort_that_lies_wholly_on_one_device_works_and_is_counted(execution):
  """Of 16 clients on two devices the first eight: half of them run on the other device."""
  stack = compose(
    fedavg(tiny.loss, learning_rate=0.1, batch_size=2),
    tiny.changed(uniform(16, 8), lambda ctx, cohort: cohort._replace(id=jnp.arange(8))),
    by_examples(),
  )
  _, whole, _ = result(stack, EQUAL, mode='loop', devices=1)
  _, divided, rows = result(stack, EQUAL, data='divided', devices=2, **execution)
  assert rows['moved'].tolist() == [4, 4, 4]
  tiny_close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
  jax.tree.map(tiny_close, divided, whole)
  _, _, rows = result(stack, EQUAL, data='divided', devices=2, slack=4, **execution)
  assert rows['moved'].tolist() == [0, 0, 0]


def test_a_pooled_round_takes_the_examples_from_where_they_are():
  stack = compose(
    fedsgd(tiny.loss, batch_size=16, server_optimizer=sgd(0.5)),
    uniform(17, 9),
    by_examples(),
  )
  _, whole, _ = result(stack, SEVENTEEN, mode='loop', devices=1)
  sim, divided, _ = result(stack, SEVENTEEN, data='divided', pool=True, mode='loop', devices=2)
  assert sim.setting.pool is not None
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), divided, whole)


def test_rows_that_several_clients_share_are_held_once_a_device():
  rng = np.random.default_rng(0)
  population = stack_clients([{'x': rng.normal(size=(6, 2)).astype(np.float32)}] * 2)
  shared = np.array([0, 1, 2, 0, 1, 2, 2, 1, 5, 5, 5, 5], np.int32)
  population = type(population)(
    {'x': population.arrays['x'][:6]}, shared, np.array([0, 3, 6, 9]), np.array([3, 3, 3, 3])
  )
  made = apart.divide(population, make_mesh(2))
  assert made.arrays['x'].shape == (6, 2)  # three rows a device
  for client in range(4):
    device, start = client // 2, int(made.start[client])
    index = np.asarray(made.index).reshape(2, -1)[device]
    rows = np.asarray(made.arrays['x']).reshape(2, 3, 2)[device][index[start : start + 3]]
    wanted = np.asarray(population.arrays['x'])[shared[3 * client : 3 * client + 3]]
    np.testing.assert_array_equal(rows, wanted)


def test_what_one_device_sends_arrives_to_the_bit():
  rng = np.random.default_rng(0)
  values = {
    'floats': np.array([-0.0, np.nan, 1e-39, -3.5, np.inf], np.float32),
    'bytes': rng.integers(0, 256, (3, 5)).astype(np.uint8),
    'flags': np.array([True, False, True]),
    'half': jnp.asarray(rng.normal(size=7), jnp.bfloat16),
    'complex': np.array([1 - 2j, -0.0 + 1j], np.complex64),
    'small': jnp.asarray([1, -3, 7], jnp.int4),
    'one': np.int32(-(2**31)),
  }

  def share(values):
    me = jax.lax.axis_index(AXIS)
    mine = jax.tree.map(
      lambda x: x if x.dtype in (bool, jnp.int4) else (x + me.astype(x.dtype)), values
    )
    return across.only(me == 1, mine, AXIS)

  spec = jax.sharding.PartitionSpec()
  mapped = jax.shard_map(share, mesh=make_mesh(2), in_specs=spec, out_specs=spec, check_vma=False)
  alone = lambda x: x if x.dtype in (bool, jnp.int4) else x + jnp.ones((), x.dtype)
  tiny.assert_same_bits(jax.jit(mapped)(values), jax.tree.map(alone, values))
