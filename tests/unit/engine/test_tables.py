"""Client tables divided over the devices: who runs where, rows fetched and sent back, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem.core import Layer, Message, Stage, Trains, compose
from fedjax_mem.engine import Execution
from fedjax_mem.engine import tables as shelves
from fedjax_mem.engine.clients import Layout, spread
from fedjax_mem.engine.mesh import make_mesh
from fedjax_mem.stages.aggregate import median
from fedjax_mem.stages.masks import mask
from fedjax_mem.stages.privacy import distributed
from fedjax_mem.stages.select import dropout, poisson, uniform
from fedjax_mem.stages.weigh import equal

pytestmark = pytest.mark.devices(2)


# Rows of the tables.

DTYPES = (
  jnp.float32,
  jnp.bfloat16,
  jnp.int32,
  jnp.int8,
  jnp.uint32,
  jnp.bool_,
  jnp.int4,
  jnp.complex64,
)


def values(rng, rows):
  """Returns one table a dtype, with negative zeros, NaN and subnormal numbers among the floats."""
  made = {}
  for dtype in DTYPES:
    x = rng.integers(-100, 100, (rows, 2, 3))
    x = jnp.asarray(x if jnp.issubdtype(dtype, jnp.floating) else np.abs(x)).astype(dtype)
    if jnp.issubdtype(dtype, jnp.floating):
      x = x.at[::2, 0, 0].set(-0.0).at[1::3, 1, 1].set(jnp.nan).at[::3, 0, 1].set(1e-39)
    made[jnp.dtype(dtype).name] = x
  return made | {'scalar': jnp.asarray(rng.normal(size=rows), jnp.float32)}


def as_bits(x):
  x = np.asarray(x)
  return x.view(f'u{x.dtype.itemsize}') if x.dtype.itemsize > 1 else x


@pytest.mark.slow
@pytest.mark.parametrize(
  'population, devices, chunk',
  [
    (8, 1, 2),
    (8, 2, 2),
    (8, 2, None),
    *(
      pytest.param(*x, marks=pytest.mark.devices(x[1]))
      for x in [(8, 4, 1), (8, 8, None), (24, 4, 3), (24, 8, 1), (4, 4, 1)]
    ),
  ],
)
def test_rows_are_read_and_written_wherever_they_are(population, devices, chunk):
  """Any order of clients: at home, away, several on one device away, padding, rows to keep."""
  layout = Layout(chunk or 1, chunk is None, make_mesh(devices))
  slots = layout.block * max(1, population // layout.block)
  rng = np.random.default_rng(devices)
  table, new = values(rng, population), values(rng, slots)

  @jax.jit
  def go(table, ids, ok, new):
    def step(ids, held, packed):
      slot, ok, new = packed
      turn = shelves.turn(ids, slot, population, layout)
      return (), shelves.write(held, turn, ok, new), (shelves.read(held, turn), ())

    rows = (jnp.arange(slots, dtype=jnp.int32), ok, new)
    _, out, (old, _) = spread(step, ids, table, rows, chunk=chunk, mesh=layout.mesh, summed=False)
    return out, old

  for trial in range(4):
    ids = rng.permutation(population)[:slots]
    if trial:
      ids[rng.integers(0, slots, 2)] = population
    ok = (rng.random(slots) < 0.7) if trial > 1 else np.ones(slots, bool)
    out, old = go(table, jnp.asarray(ids, jnp.int32), jnp.asarray(ok), new)
    real = ids < population
    for name, before in table.items():
      after = np.array(before)
      after[ids[ok & real]] = np.asarray(new[name])[ok & real]
      np.testing.assert_array_equal(as_bits(out[name]), as_bits(after))
      np.testing.assert_array_equal(
        as_bits(old[name])[real], as_bits(before)[ids[real]], err_msg=name
      )
      if devices > 1:
        assert out[name].addressable_shards[0].data.shape[0] == population // devices


# Whole rounds.

SIXTEEN = tiny.client_data([4] * 16)
RAGGED = tiny.client_data([1 + i % 5 for i in range(16)])
LAYOUTS = {
  'loop': Execution(mode='loop', devices=tiny.DEVICES, pool=False),
  'chunk': Execution(mode='chunk', chunk=2, devices=2, pool=False),
  'vmap': Execution(mode='vmap', devices=tiny.SOME, pool=False),
}


def remembering():
  """Returns a layer whose clients count and add up; every third is NaN in its second round."""

  def apply(ctx, message, state):
    times, total = state
    bad = (ctx.client.id % 3 == 0) & (times == 1)
    update = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), message.update)
    total = 1.5 * total + ctx.client.id.astype(jnp.float32) + ctx.round.astype(jnp.float32) / 8
    return message._replace(update=update), (times + 1, total), {}

  init = lambda ctx: (jnp.int32(0), jnp.zeros((tiny.FEATURES, tiny.CLASSES)))
  return Layer('remembering', client=Stage(apply, init))


def rounds(execution, data, select, *more, count=6, divisor=6.0):
  layers = compose(tiny.algorithm(), select, equal(divisor), remembering(), *more)
  sim = tiny.build(layers, execution, pop=tiny.population(data))
  state, metrics = sim.run(sim.init(tiny.initial()), count)
  assert sim.segment._cache_size() == 1
  return sim, state, metrics


@pytest.mark.slow
@pytest.mark.parametrize('data', [SIXTEEN, RAGGED], ids=['equal', 'ragged'])
@pytest.mark.parametrize('name', LAYOUTS)
def test_states_are_those_of_one_device_to_the_bit(name, data):
  """What these clients remember comes from no sum, whose order depends on the devices."""
  select = (uniform(16, 7), dropout(0.3))
  _, one, _ = rounds(Execution(mode='loop', devices=1, pool=False), data, select)
  sim, many, metrics = rounds(LAYOUTS[name], data, select)
  assert sim.setting.divided
  tiny.assert_same_bits(many.clients, one.clients)
  times = np.asarray(one.clients['remembering'][0])
  assert times.max() > 1 and times[::3].max() == 1
  assert (metrics['not_finite'] >= 0).any()


@pytest.mark.parametrize('name', LAYOUTS)
@pytest.mark.first(1)
def test_states_beside_a_cohort_side_are_divided_and_those_of_one_device(name):
  select = (uniform(16, 7), dropout(0.3))
  rule = median()
  alone = Execution(mode='loop', devices=1, pool=False)
  _, one, _ = rounds(alone, SIXTEEN, select, rule, divisor=None)
  sim, many, _ = rounds(LAYOUTS[name], SIXTEEN, select, rule, divisor=None)
  assert sim.setting.late
  tiny.assert_same_bits(many.clients, one.clients)
  held = many.clients['remembering'][1]
  assert held.addressable_shards[0].data.shape[0] == 16 // sim.setting.layout.devices


@pytest.mark.slow
@pytest.mark.parametrize('name', LAYOUTS)
def test_a_state_put_back_on_the_devices_goes_on_without_a_compilation(name):
  sim, state, _ = rounds(LAYOUTS[name], SIXTEEN, poisson(16, 0.4))
  held = state.clients['remembering'][1]
  assert held.addressable_shards[0].data.shape[0] == 16 // sim.setting.layout.devices
  host = jax.device_get(state)
  again, _ = sim.run(jax.device_put(host, sim.shardings), 3)
  went_on, _ = sim.run(state, 3)
  tiny.assert_same_bits(again, went_on)
  assert sim.segment._cache_size() == 1


@pytest.mark.slow
@pytest.mark.devices(4)  # two divide the ten clients
def test_rows_are_written_late_where_a_round_may_be_undone_and_whole_where_they_do_not_divide():
  size = tiny.FEATURES * tiny.CLASSES + tiny.CLASSES
  withheld = distributed(1.0, 0.5, shares=2, clients=8, dimension=size, bits=20)
  layers = *withheld, mask(clients=8, bits=20)
  sim, state, _ = rounds(LAYOUTS['chunk'], SIXTEEN, uniform(16, 7), *layers, count=1)
  assert sim.setting.late and not sim.setting.divided
  assert state.clients['remembering'][1].addressable_shards[0].data.shape[0] == 8
  sim, _, _ = rounds(LAYOUTS['loop'], tiny.DATA, uniform(10, 7), count=1)
  assert not sim.setting.divided and not sim.setting.late


def lazy():
  """Returns an algorithm that sends the very row that it replaces."""

  def client(ctx, task, state):
    del task
    return Message(state, jnp.float32(1), {}), 0.5 * state + ctx.params, {}

  server = Stage(lambda ctx, message, state: (ctx.params - message.update, state, {}))
  init = lambda ctx: jnp.zeros_like(ctx.params)
  return Layer('algorithm', client=Stage(client, init, (Trains(),)), server=server)


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 2])
@pytest.mark.parametrize('mode', ['loop', 'chunk'])
def test_no_copy_of_a_table_is_made(mode, devices):
  """Rows are written in place: beside the state, a round takes the memory of some rows."""
  chunk = 2 if mode == 'chunk' else None
  execution = Execution(mode=mode, chunk=chunk, devices=devices, pool=False)
  params = jnp.zeros(5000)
  pop = tiny.population(tiny.client_data([2] * 64))
  sim = tiny.build(compose(lazy(), uniform(64, 8), equal()), execution, pop=pop, params=params)
  assert sim.setting.divided
  state = sim.init(params)
  lowered = sim.segment.lower(state, sim.population, *tiny.rooted(0), np.int32(1))
  used = lowered.compile().memory_analysis().temp_size_in_bytes
  assert used < 0.5 * 64 // devices * params.nbytes
