"""One local step of a cohort as one: equal to the clients one by one, and used only there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import tiny

from fedjax_mem.core import Layer, Prepares, Stage, Trains, Weighs, compose, tree
from fedjax_mem.engine import Execution
from fedjax_mem.stages.algorithm import fedavg, fedsgd
from fedjax_mem.stages.algorithm._base import Sgd
from fedjax_mem.stages.privacy import central
from fedjax_mem.stages.select import dropout, poisson, uniform
from fedjax_mem.stages.weigh import by_examples, capped, equal

pytestmark = pytest.mark.devices(2)

TOLERANCE = 1e-6
BATCH = 9  # the largest client has nine examples: one step each
POPULATIONS = {'ragged': tiny.population(), 'equal': tiny.population(tiny.client_data([6] * 10))}


def one_step(rate=0.3, loss=tiny.loss, **options):
  return fedavg(loss, learning_rate=rate, batch_size=BATCH, **options)


ALGORITHMS = {
  'fedsgd': lambda: fedsgd(tiny.loss, batch_size=4, server_optimizer=optax.sgd(0.5)),
  'momentum, decay': lambda: one_step(optimizer=Sgd(0.9, 0.2)),
  'schedule, server momentum': lambda: one_step(
    optax.linear_schedule(0.4, 0.1, 3), server_optimizer=optax.sgd(0.5, momentum=0.9)
  ),
}
WEIGHINGS = {
  'equal': equal(),
  'capped, divisor': capped(4, 3.0),
}


def simulations(layers, pop=POPULATIONS['ragged'], devices=(1,), **more):
  """Returns the simulation of clients one by one, then one pooled for each number of devices."""
  how = [Execution(mode='chunk', chunk=4, devices=1, pool=False)]
  how += [Execution(mode='vmap', devices=n, pool=True) for n in devices]
  each, *pooled = (tiny.build(layers, x, pop=pop, **more) for x in how)
  assert each.setting.pool is None and all(x.setting.pool is not None for x in pooled)
  return each, *pooled


def check(layers, rounds=3, **more):
  """Fails unless one by one and pooled give the same."""
  each, *others = (tiny.execute(sim, rounds) for sim in simulations(layers, **more))
  for pooled in others:
    assert_equal(each, pooled)


def assert_equal(each, pooled):
  (state, told), (other, reported) = each, pooled
  tiny.assert_close(state, other, TOLERANCE)
  assert told.keys() == reported.keys()
  # A cohort is padded to the layout and put in its order; a pooled step wastes no steps.
  for name in told.keys() - {'ids', 'not_finite', 'algorithm/wasted_steps'}:
    np.testing.assert_allclose(told[name], reported[name], 1e-5, err_msg=name)
  for name in ('ids', 'not_finite'):
    named = [[sorted(x[x >= 0].tolist()) for x in metrics[name]] for metrics in (told, reported)]
    assert named[0] == named[1]
  if 'algorithm/wasted_steps' in reported:
    waste = reported['algorithm/wasted_steps']
    assert (np.isnan(waste) | (waste == 0)).all()  # NaN where nobody took part


@pytest.mark.slow
@pytest.mark.parametrize('name', ALGORITHMS)
def test_every_algorithm_with_one_step(name):
  check(compose(ALGORITHMS[name](), (uniform(tiny.N, tiny.C), dropout(0.3)), by_examples()))


@pytest.mark.slow
@pytest.mark.parametrize('name', WEIGHINGS)
def test_every_weighing(name):
  check(compose(one_step(optimizer=Sgd(weight_decay=0.1)), tiny.rota(), WEIGHINGS[name]))


@pytest.mark.slow
def test_a_poisson_cohort_of_which_half_is_lost():
  half_lost = (poisson(tiny.N, 0.6), dropout(0.5))
  check(compose(one_step(), half_lost, equal(6.0)), devices=(tiny.SOME,))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('people', 'devices'), [('ragged', (1, 2, tiny.DEVICES)), ('equal', (tiny.DEVICES,))]
)
def test_every_number_of_devices(people, devices):
  layers = compose(one_step(optimizer=Sgd(0.9, 0.1)), poisson(tiny.N, 0.6), by_examples())
  check(layers, pop=POPULATIONS[people], devices=devices)


@pytest.mark.slow
def test_examples_go_through_the_transforms():
  double = lambda batch: {**batch, 'x': 2 * batch['x']}
  layers = compose(one_step(), uniform(tiny.N, tiny.C), by_examples())
  each, pooled = simulations(layers, transforms=(double,))
  before = tiny.execute(pooled, 2)
  assert_equal(tiny.execute(each, 2), before)
  halved = tiny.population([{**x, 'x': x['x'] / 2} for x in tiny.client_data()])
  after = tiny.execute(pooled, 2, pop=halved)
  assert np.abs(tiny.vec(after[0].params) - tiny.vec(before[0].params)).max() > 1e-3


@pytest.mark.slow
def test_a_cohort_of_many_chunks(monkeypatch):
  """As if memory held the examples of two clients only."""
  monkeypatch.setattr('fedjax_mem.engine.pooled._EXAMPLES', 20)
  check(compose(one_step(), uniform(tiny.N, tiny.N), by_examples()))


# Never used where somebody may look at a single update.


def looks():
  return Layer('looks', client=Stage(lambda ctx, message, state: (message, state, {})))


def counts():
  apply = lambda ctx, message, state: (message, state + 1, {})
  return Layer('counts', client=Stage(apply, lambda ctx: jnp.int32(0)))


def poison():
  def flip(ctx, task, state):
    return task._replace(params=tree.scale(jnp.float32(0.5), task.params)), state, {}

  return Layer('poison', client=Stage(flip, facts=(Prepares(),)))


def feedback():
  """A sampler whose own client side writes down what the client sent."""
  layer = uniform(tiny.N, tiny.C)
  note = lambda ctx, message, state: (message, tree.norm(message.update), {})
  return layer._replace(client=Stage(note, lambda ctx: jnp.float32(0)))


def noisy_loss(params, batch, key):
  """A loss that draws from its key, as dropout does."""
  losses = tiny.loss(params, batch)
  if key is None:
    return losses
  return losses * jax.random.bernoulli(key, 0.5, losses.shape).astype(jnp.float32)


def replaced():
  """FedAvg with another client side around its own."""
  layer = one_step()
  twice = lambda ctx, task, state: layer.client.apply(ctx, task, state)
  return layer._replace(client=Stage(twice, facts=(Trains(),)))


def momentum(rate):
  return optax.sgd(rate, momentum=0.9)


STACKED = Layer('stacked', cohort=Stage(lambda c, m, s: (m, s, {})))
UNIFORM, EQUAL = uniform(tiny.N, tiny.C), equal()
SINGLE = {
  'a clip': lambda: (one_step(), UNIFORM, equal(6.0), central(0.5, 0.0)),
  'noise': lambda: (one_step(), UNIFORM, equal(6.0), central(0.5, 1.0)),
  'a layer that passes on': lambda: (one_step(), UNIFORM, EQUAL, looks()),
  'a client state': lambda: (one_step(), UNIFORM, EQUAL, counts()),
  'a stacked layer': lambda: (one_step(), UNIFORM, EQUAL, STACKED),
  'a task layer': lambda: (poison(), one_step(), UNIFORM, EQUAL),
  'a sampler with a client side': lambda: (one_step(), feedback(), EQUAL),
  'a loss that draws': lambda: (one_step(loss=noisy_loss), UNIFORM, EQUAL),
  'a loss that draws, fedsgd': lambda: (
    fedsgd(noisy_loss, batch_size=BATCH, server_optimizer=optax.sgd(1.0)), UNIFORM, EQUAL
  ),
  'two epochs': lambda: (one_step(epochs=2), UNIFORM, EQUAL),
  'several batches': lambda: (
    fedavg(tiny.loss, learning_rate=0.3, batch_size=BATCH - 1), UNIFORM, EQUAL
  ),
  'a custom optimizer': lambda: (one_step(optimizer=momentum), UNIFORM, EQUAL),
  'a partial of sgd': lambda: (
    one_step(optimizer=functools.partial(optax.sgd, nesterov=True, momentum=0.5)), UNIFORM, EQUAL
  ),
  'a client side of the user': lambda: (replaced(), UNIFORM, EQUAL),
  'adam': lambda: (one_step(optimizer=optax.adam), UNIFORM, EQUAL),
  'a weighing that does not say how': lambda: (
    one_step(), UNIFORM, EQUAL._replace(client=EQUAL.client._replace(facts=(Weighs(),)))
  ),
}  # fmt: skip


def test_a_cohort_side_of_the_algorithm_or_the_weighing_is_not_passed_over():
  stack = Stage(lambda ctx, stack, state: (stack, state, {}))
  for changed in (
    compose(one_step()._replace(cohort=stack), tiny.rota(), equal()),
    compose(one_step(), tiny.rota(), equal()._replace(cohort=stack)),
  ):
    assert tiny.build(changed, 'pooled').setting.pool is None
  assert tiny.build(compose(one_step(), tiny.rota(), equal()), 'pooled').setting.pool is not None


@pytest.mark.slow
@pytest.mark.standard_promotion
@pytest.mark.parametrize('name', SINGLE)
def test_it_is_never_used_where_a_single_update_counts(name):
  layers = compose(*SINGLE[name]())
  sim = tiny.build(layers, Execution(mode='vmap', devices=1, pool=True))
  assert sim.setting.pool is None


@pytest.mark.slow
def test_then_asking_for_it_changes_no_bit():
  layers = compose(*SINGLE['a client state']())
  states = [
    tiny.execute(tiny.build(layers, Execution(mode='vmap', devices=1, pool=pool)), 2)[0]
    for pool in (True, False)
  ]
  tiny.assert_same_bits(*states)


@pytest.mark.slow
def test_it_is_not_used_unless_allowed():
  layers = compose(one_step(), UNIFORM, EQUAL)
  assert tiny.build(layers, Execution(mode='vmap', devices=1, pool=False)).setting.pool is None
  assert tiny.build(layers, Execution(devices=1)).setting.pool is not None


# Clients whose update is not finite, or who have nothing to say.


@pytest.fixture(scope='module')
def turns():
  """Clients in turn: 0 – 5 in round 0 without 0 and 4, 6 – 1 without 7, 2 – 7 without 2 and 6."""
  sims = simulations(compose(one_step(), tiny.rota(), by_examples()), devices=(tiny.SOME,))

  def play(rounds=3, nan=(), empty=(), **more):
    pop = POPULATIONS['ragged']
    for client in nan:
      pop = tiny.with_client(pop, client, x=jnp.nan)
    for client in empty:
      pop = tiny.with_client(pop, client, count=0)
    each, pooled = (tiny.execute(sim, rounds, pop=pop, **more) for sim in sims)
    assert_equal(each, pooled)
    return pooled

  return play


def named(told):
  return [sorted(x[x >= 0].tolist()) for x in told['not_finite']]


@pytest.mark.slow
def test_a_client_that_is_nan_is_left_out_and_named(turns):
  state, told = turns(nan=[3, 8])
  assert named(told) == [[3], [8], [3]]
  assert told['clients'].tolist() == [3, 4, 3]
  assert np.isfinite(tiny.vec(state.params)).all()
  _, told = turns()
  assert named(told) == [[], [], []] and told['clients'].tolist() == [4, 5, 4]


@pytest.mark.slow
def test_a_nan_client_that_is_not_there_or_whose_message_is_lost_is_not_named(turns):
  for client in (9, 0):  # padding repeats the examples of some client or other
    _, told = turns(1, nan=[client])
    assert named(told) == [[]] and told['clients'].tolist() == [4]


@pytest.mark.slow
def test_a_client_without_examples_takes_no_part(turns):
  turns(empty=[3, 8])


def test_a_round_without_anybody_changes_nothing(turns):
  state, told = turns(empty=range(tiny.N))
  np.testing.assert_array_equal(tiny.vec(state.params), tiny.vec(tiny.initial()))
  assert told['examples'].tolist() == [0, 0, 0] and np.isnan(told['algorithm/train_loss']).all()


def test_parameters_that_are_nan_are_everybodys(turns):
  start = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tiny.initial())
  _, told = turns(1, params=start)
  assert named(told) == [[1, 2, 3, 5]]
  assert told['clients'].tolist() == [0] and not told['finite'][0]
