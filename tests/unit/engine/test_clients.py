"""Clients in parallel: gradients on a mesh, memory, draws that no layout changes, pooled sums."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import given, tiny

from fedjax_mem.core import Layer, Message, Stage, Trains, compose, stack_clients, tree
from fedjax_mem.engine import Execution
from fedjax_mem.stages.algorithm import fedavg, fedsgd
from fedjax_mem.stages.algorithm._base import Sgd
from fedjax_mem.stages.privacy import central
from fedjax_mem.stages.select import dropout, poisson, uniform
from fedjax_mem.stages.weigh import by_examples, capped, equal


@pytest.mark.slow
@pytest.mark.parametrize('mode', tiny.MODES)
def test_gradients_are_the_clients_own(mode):
  """Eight clients with the true gradients 1 … 8: a mesh must not add them up."""
  pop = stack_clients([{'x': np.full((1,), i, np.float32)} for i in range(1, 9)])

  def client(ctx, task, state):
    x = task.data.take(jnp.zeros(1, jnp.int32))['x'][0]
    grads = jax.grad(lambda p: p['w'] * x)(task.params)
    return Message(grads, jnp.float32(1), {}), grads['w'], {}

  init = lambda ctx: jnp.float32(0)
  server = Stage(lambda c, m, s: (tree.sub(c.params, m.update), s, {}))
  algorithm = Layer('algorithm', client=Stage(client, init, (Trains(),)), server=server)
  start = {'w': jnp.asarray(0.0)}  # weakly typed, as a user's may be
  sim = tiny.build(compose(algorithm, uniform(8, 8), equal()), mode, pop=pop, params=start)
  state, _ = sim.run(sim.init(start), 1)
  assert np.asarray(state.clients['algorithm']).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
  assert float(state.params['w']) == -4.5
  state, _ = sim.run(state, 1)
  assert float(state.params['w']) == -9 and sim.segment._cache_size() == 1


@pytest.mark.slow
def test_a_model_is_traced_once_for_the_plan_and_for_the_loop():
  """The start waits for every trace of a model."""
  traced = []

  def loss(params, batch, key):
    traced.append(1)
    return tiny.loss(params, batch, key)

  pop = tiny.population(tiny.client_data([4] * 4))
  train = fedavg(loss, learning_rate=0.1, batch_size=2)
  layers = compose(train, uniform(4, 4), by_examples())
  execution = Execution(mode='loop', devices=1)
  sim = tiny.build(layers, execution, pop=pop, params=tiny.initial())
  sim.run(sim.init(tiny.initial()), 2)
  assert len(traced) == 1


def memory(cohort, execution):
  features = 4000
  pop = tiny.population(tiny.client_data([2] * 64, features=features))
  layers = compose(
    fedavg(tiny.loss, learning_rate=0.1, batch_size=2, optimizer=optax.sgd),
    uniform(64, cohort),
    equal(),
  )
  sim = tiny.build(layers, execution, pop=pop, params=tiny.initial(features))
  state = jax.eval_shape(lambda: sim.init(tiny.initial(features)))
  lowered = sim.segment.lower(state, sim.population, *tiny.rooted(0), np.int32(1))
  return lowered.compile().memory_analysis().temp_size_in_bytes, features * tiny.CLASSES * 4


@pytest.mark.slow
def test_memory_is_of_the_chunk_not_of_the_cohort():
  execution = Execution(mode='chunk', chunk=4, devices=1, pool=False)
  (small, one), (large, _) = memory(8, execution), memory(64, execution)
  assert large - small < one  # not even one more copy of the parameters
  whole, _ = memory(64, Execution(mode='vmap', devices=1, pool=False))
  assert whole > large + 30 * one


def drawing():
  """Returns a layer that writes its client's, the cohort's and the server's draws into states."""

  def client(ctx, message, state):
    drawn = jnp.stack([jax.random.uniform(ctx.key), jax.random.uniform(ctx.round_key)])
    return message, drawn, {}

  def server(ctx, message, state):
    return message, jnp.stack([jax.random.uniform(ctx.key), jax.random.uniform(ctx.round_key)]), {}

  zeros = lambda ctx: jnp.zeros(2)
  return Layer('draws', client=Stage(client, zeros), server=Stage(server, zeros))


def draws_of(layers, mode, **kwargs):
  sim = tiny.build(layers, mode, **kwargs)
  state, _ = tiny.execute(sim, 1)
  return state.clients['draws'], state.servers['draws'], np.asarray(sim.cohorts(state, 1))


@pytest.mark.devices(2)
@pytest.mark.slow
def test_neither_chunks_nor_devices_nor_other_layers_change_a_draw():
  base = (tiny.algorithm(), uniform(tiny.N, tiny.C), equal())
  clients, server, ids = draws_of(compose(*base, drawing()), 'vmap')
  for mode in ('chunk on devices',):
    other = draws_of(compose(*base, drawing()), mode)
    np.testing.assert_array_equal(other[0], clients)
    np.testing.assert_array_equal(other[1], server)
    np.testing.assert_array_equal(np.sort(other[2][other[2] < tiny.N]), np.sort(ids.ravel()))
  more = compose(*base[:2], Layer('before'), base[2], drawing(), drawing()._replace(name='after'))
  other = draws_of(more, 'vmap')
  for a, b in zip(other, (clients, server, ids), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_draws_differ_by_client_role_and_round_and_share_what_is_common():
  sim = tiny.build(compose(tiny.algorithm(), uniform(tiny.N, tiny.N), equal(), drawing()))
  one, _ = tiny.execute(sim, 1)
  two, _ = tiny.execute(sim, 2)
  private = np.concatenate([s.clients['draws'][:, 0] for s in (one, two)])
  private = np.append(private, [s.servers['draws'][0] for s in (one, two)])
  assert len(np.unique(private)) == 2 * tiny.N + 2
  for state in (one, two):
    assert len({*state.clients['draws'][:, 1], state.servers['draws'][1]}) == 1
  assert one.servers['draws'][1] != two.servers['draws'][1]


POOLED = {
  'fedsgd': lambda: fedsgd(tiny.loss, batch_size=4, server_optimizer=optax.sgd(0.5)),
  'fedavg': lambda: fedavg(tiny.loss, learning_rate=0.3, batch_size=9),
  'fedavg, decay': lambda: fedavg(
    tiny.loss, learning_rate=0.3, batch_size=16, optimizer=Sgd(momentum=0.9, weight_decay=0.1)
  ),
}


WEIGHINGS = {'fedsgd': by_examples(), 'fedavg': equal(5.0), 'fedavg, decay': capped(4)}


@pytest.mark.devices(2)
@pytest.mark.slow
@pytest.mark.parametrize('name', POOLED)
def test_one_step_pooled_equals_the_clients_one_by_one(name):
  weigh = WEIGHINGS[name]
  layers = compose(POOLED[name](), (uniform(tiny.N, tiny.C), dropout(0.3)), weigh)
  each, pooled = tiny.build(layers, 'chunk'), tiny.build(layers, 'pooled on devices')
  assert pooled.setting.pool is not None and each.setting.pool is None
  (a, told), (b, reported) = tiny.execute(each), tiny.execute(pooled)
  tiny.assert_close(a, b)
  for metric in set(told) - {'algorithm/wasted_steps', 'not_finite', 'ids'}:
    np.testing.assert_allclose(told[metric], reported[metric], rtol=1e-5, err_msg=metric)


@pytest.mark.slow
def test_a_pooled_sum_that_is_not_finite_finds_out_whose_fault_it_is():
  layers = tiny.layers()
  broken = tiny.with_client(tiny.population(), 2, x=jnp.nan)
  each, told = tiny.execute(tiny.build(layers), pop=broken)
  pooled, reported = tiny.execute(tiny.build(layers, 'pooled'), pop=broken)
  tiny.assert_close(each, pooled)
  np.testing.assert_array_equal(told['not_finite'], reported['not_finite'])
  assert 2 in reported['not_finite']


@pytest.mark.slow
@pytest.mark.parametrize(
  'algorithm',
  [
    fedavg(tiny.loss, learning_rate=0.3, batch_size=8),  # two steps for the largest client
    fedavg(tiny.loss, learning_rate=0.3, batch_size=9, epochs=2),
    fedavg(tiny.loss, learning_rate=0.3, batch_size=9, optimizer=optax.adam),
    fedsgd(
      lambda p, b, k: tiny.loss(p, b) * jax.random.uniform(k, (len(b['y']),)),
      batch_size=9,
      server_optimizer=optax.sgd(1.0),
    ),
  ],
)
@pytest.mark.standard_promotion
def test_what_is_no_sum_over_examples_is_not_pooled(algorithm):
  sim = tiny.build(compose(algorithm, tiny.rota(), equal()), 'pooled')
  assert sim.setting.pool is None


@pytest.mark.slow
def test_a_layer_that_looks_at_single_updates_is_not_pooled():
  sim = tiny.build(tiny.layers(Layer('look', client=Stage(lambda c, m, s: (m, s, {})))), 'pooled')
  assert sim.setting.pool is None


@pytest.mark.slow
def test_a_neighbour_whose_examples_are_not_finite_does_no_harm():
  """Client 1 of nine examples fills its last batch of four with padding; client 2 is NaN."""
  layers = compose(
    fedavg(tiny.loss, learning_rate=0.2, batch_size=4), uniform(tiny.N, tiny.N), equal()
  )
  sim = tiny.build(layers)
  _, metrics = tiny.execute(sim, 2, pop=tiny.with_client(sim.population, 2, x=jnp.nan))
  assert {*metrics['not_finite'].ravel().tolist()} == {-1, 2}
  assert metrics['clients'].tolist() == [9, 9]


@pytest.mark.first(2)
@pytest.mark.parametrize('claim', [False, True])
@pytest.mark.parametrize('mode', ['vmap', 'loop', 'chunk on devices'])
def test_one_of_many_values_that_is_not_finite_leaves_its_client_out(claim, mode):
  """Of so many values a maximum loses NaN on a CPU."""
  w = np.ones((6, 90, 100), np.float32)
  w[2, 40, 7] = w[4] = np.nan
  noise = (central(1000.0, 1e-6),) if claim else ()
  sim = given.build({'w': w}, *noise, execution=mode)
  (released,), (metrics,), _ = given.play(sim)
  np.testing.assert_allclose(released['w'], np.full((90, 100), 4.0), atol=0.1 if claim else 0)
  found = metrics['not_finite']
  assert sorted(found[found >= 0].tolist()) == ([] if claim else [2, 4])  # no claim covers a name
  assert metrics.get('zeroed', 0) == (2 if claim else 0)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['vmap', 'loop', 'chunk', 'stacked'])
def test_a_row_that_is_not_finite_stays_as_it_was_and_its_message_counts(mode):
  def client(ctx, message, state):
    ids = (ctx.cohort if ctx.client is None else ctx.client).id
    bad = (ids == 3) & (ctx.round == 1)
    return message, state + jnp.where(bad, jnp.nan, 1.0), {}

  stacked = mode == 'stacked'
  side = Stage(client, lambda ctx: jnp.float32(0))
  layer = Layer('memory', cohort=side) if stacked else Layer('memory', client=side)
  layers = compose(tiny.algorithm(), uniform(tiny.N, tiny.N), equal(), layer)
  sim = tiny.build(layers, 'vmap' if stacked else mode)
  state, metrics = tiny.execute(sim, 3)
  assert state.clients['memory'].tolist() == [2.0 if i == 3 else 3.0 for i in range(tiny.N)]
  assert metrics['clients'].tolist() == [tiny.N] * 3 and (metrics['not_finite'] == -1).all()


@pytest.mark.devices(2)
@pytest.mark.slow
def test_clients_of_equal_size_need_no_masks_and_give_the_same():
  data = tiny.client_data([6] * tiny.N)
  layers = compose(
    fedavg(tiny.loss, learning_rate=0.2, batch_size=4, optimizer=Sgd(momentum=0.9)),
    poisson(tiny.N, 0.5, 8),
    by_examples(),
  )
  sim = tiny.build(layers, 'chunk on devices', pop=tiny.population(data))
  shape = sim.setting.shape
  assert shape.equal
  masked = tiny.build(layers, 'vmap', pop=tiny.population(data), shape=shape._replace(equal=False))
  tiny.assert_close(tiny.execute(sim)[0], tiny.execute(masked)[0])
