"""FedAvg and FedSGD against NumPy loops that make the same draws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import tiny, twins

from fedjax_mem.core import Examples, compose
from fedjax_mem.optim import fedavgm, sgd
from fedjax_mem.stages.algorithm import _base as training
from fedjax_mem.stages.algorithm import fedavg, fedsgd
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import by_examples, capped, equal

ROUNDS = 3


def round_of(algorithm, weigh=None):
  return compose(algorithm, round_robin(tiny.N, tiny.C), weigh or by_examples())


def cohort(round):
  return [(round * tiny.C + i) % tiny.N for i in range(tiny.C)]


def fedavg_twin(weight=float, data=None, schedule=lambda t: 0.2, **kwargs):
  """Returns (parameters, train_loss of each round) of example-weighted FedAvg."""
  v, seen = twins.START, []
  for t in range(ROUNDS):
    made = [twins.local_sgd(v, i, t, rate=schedule(t), data=data, **kwargs) for i in cohort(t)]
    n = [weight(len((data or tiny.DATA)[i]['y'])) for i in cohort(t)]
    v = v - np.average([v - w for w, _ in made], 0, n)
    seen.append(np.concatenate([x for _, x in made]).mean())
  return v, seen


@pytest.mark.slow
@pytest.mark.parametrize('mode', ('vmap', 'loop on devices'))
def test_fedavg_with_momentum_epochs_and_partial_batches(mode):
  algorithm = fedavg(
    tiny.loss,
    learning_rate=0.2,
    batch_size=4,
    epochs=2,
    optimizer=lambda rate: optax.sgd(rate, momentum=0.9),
  )
  state, metrics = tiny.execute(tiny.build(round_of(algorithm), mode), ROUNDS)
  params, seen = fedavg_twin(batch=4, epochs=2, momentum=0.9)
  assert np.abs(params - twins.START).max() > 0.2
  np.testing.assert_allclose(tiny.vec(state.params), params, atol=5e-6)
  np.testing.assert_allclose(metrics['algorithm/train_loss'], seen, rtol=1e-5)
  steps = [2 * sum(-(-tiny.COUNTS[i] // 4) for i in cohort(t)) for t in range(ROUNDS)]
  assert metrics['algorithm/steps'].tolist() == steps
  longest = [-(-max(tiny.COUNTS[i] for i in cohort(t)) // 4) for t in range(ROUNDS)]
  run = [2 * tiny.C * s for s in longest] if mode == 'vmap' else steps
  waste = [1 - s / r for s, r in zip(steps, run, strict=True)]
  np.testing.assert_allclose(metrics['algorithm/wasted_steps'], waste, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('batch', (1, 3, 9, 100))
def test_every_batch_size_from_one_example_to_more_than_there_are(batch):
  algorithm = fedavg(tiny.loss, learning_rate=0.1, batch_size=batch)
  state, _ = tiny.execute(tiny.build(round_of(algorithm)), ROUNDS)
  params, _ = fedavg_twin(schedule=lambda t: 0.1, batch=batch, epochs=1)
  np.testing.assert_allclose(tiny.vec(state.params), params, atol=5e-6)


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_a_learning_rate_may_follow_the_rounds():
  schedule = lambda t: 0.3 / (1 + t)
  algorithm = fedavg(tiny.loss, learning_rate=schedule, batch_size=4)
  state, _ = tiny.execute(tiny.build(round_of(algorithm)), ROUNDS)
  params, _ = fedavg_twin(schedule=schedule, batch=4, epochs=1)
  np.testing.assert_allclose(tiny.vec(state.params), params, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
  'weigh, weight', [(equal(), lambda n: 1.0), (capped(5), lambda n: min(n / 5, 1.0))]
)
def test_other_weighings(weigh, weight):
  algorithm = fedavg(tiny.loss, learning_rate=0.2, batch_size=4)
  state, _ = tiny.execute(tiny.build(round_of(algorithm, weigh)), ROUNDS)
  params, _ = fedavg_twin(weight, batch=4, epochs=1)
  np.testing.assert_allclose(tiny.vec(state.params), params, atol=5e-6)


@pytest.mark.slow
def test_a_fixed_divisor_divides_by_that_number():
  algorithm = fedavg(tiny.loss, learning_rate=0.2, batch_size=16)
  one, _ = tiny.execute(tiny.build(round_of(algorithm, equal(3.0))), 1)
  v = twins.START
  moved = sum(v - twins.local_sgd(v, i, 0, rate=0.2, batch=16, epochs=1)[0] for i in cohort(0)) / 3
  np.testing.assert_allclose(tiny.vec(one.params), v - moved, atol=5e-6)


@pytest.mark.slow
def test_server_momentum():
  algorithm = fedavg(
    tiny.loss, learning_rate=0.2, batch_size=4, server_optimizer=fedavgm(0.7, momentum=0.5)
  )
  state, _ = tiny.execute(tiny.build(round_of(algorithm)), ROUNDS)
  v, velocity = twins.START, np.zeros_like(twins.START)
  for t in range(ROUNDS):
    made = [v - twins.local_sgd(v, i, t, rate=0.2, batch=4, epochs=1)[0] for i in cohort(t)]
    velocity = 0.5 * velocity + np.average(made, 0, [tiny.COUNTS[i] for i in cohort(t)])
    v = v - 0.7 * velocity
  np.testing.assert_allclose(tiny.vec(state.params), v, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize('batch', (2, 9))
def test_fedsgd_is_a_step_on_all_examples_whatever_the_batch(batch):
  algorithm = fedsgd(tiny.loss, batch_size=batch, server_optimizer=sgd(0.5))
  state, metrics = tiny.execute(tiny.build(round_of(algorithm)), ROUNDS)
  v = twins.START
  for t in range(ROUNDS):
    x, y = (np.concatenate([tiny.DATA[i][k] for i in cohort(t)]) for k in 'xy')
    loss = twins.losses(v, x, y).mean()
    assert metrics['algorithm/train_loss'][t] == pytest.approx(loss, rel=1e-5)
    v = v - 0.5 * twins.gradient(v, x, y)
  np.testing.assert_allclose(tiny.vec(state.params), v, atol=5e-6)


@pytest.mark.slow
def test_one_full_batch_step_of_fedavg_is_fedsgd():
  average = fedavg(tiny.loss, learning_rate=0.5, batch_size=9)
  gradient = fedsgd(tiny.loss, batch_size=9, server_optimizer=sgd(0.5))
  a, b = (tiny.execute(tiny.build(round_of(x)), ROUNDS)[0] for x in (average, gradient))
  tiny.assert_close(a.params, b.params)


def examples_of(client):
  pop = tiny.population()
  count = pop.count[client]
  return Examples(pop.arrays, pop.index, pop.start[client], count, count, max(tiny.COUNTS))


def test_an_epoch_visits_every_example_once_in_an_order_of_its_own():
  orders = []
  for seed in range(20):
    order = np.asarray(training.shuffled(jax.random.key(seed), examples_of(3), 12))
    assert sorted(order[:4].tolist()) == [0, 1, 2, 3] and (order[4:] >= 4).all()
    orders.append(tuple(order[:4].tolist()))
  assert len(set(orders)) > 8


def test_shuffles_are_uniform():
  draw = lambda key: training.shuffled(key, examples_of(0), 9)[:3]
  orders = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 6000)))
  counts = np.unique(orders, axis=0, return_counts=True)[1]
  assert len(counts) == 6
  assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-square, 5 degrees: p = 0.001


def test_a_padded_example_may_be_anything():
  batch = {'x': jnp.array([1.0, jnp.inf, jnp.nan])}
  loss = lambda p, b, key: p * b['x']
  mask = jnp.array([True, False, False])
  key = jax.random.key(0)
  mean, parts = training.masked_mean_loss(loss, jnp.float32(2), batch, mask, key)
  assert (float(mean), float(parts.total), float(parts.count)) == (2, 2, 1)
  none = training.masked_mean_loss(loss, jnp.float32(2), batch, mask & False, key)[0]
  assert float(none) == 0


@pytest.mark.slow
def test_the_loss_gets_a_key_of_its_own_in_every_step():
  """Dropout: the keys of all steps, epochs, clients and rounds are distinct."""
  seen = []

  def loss(params, batch, key):
    jax.debug.callback(
      lambda k: seen.append(tuple(np.asarray(k).tolist())), jax.random.key_data(key)
    )
    return tiny.loss(params, batch)

  algorithm = fedavg(loss, learning_rate=0.1, batch_size=4, epochs=2)
  sim = tiny.build(round_of(algorithm), 'loop')
  state = sim.init(tiny.initial())
  jax.effects_barrier()
  seen.clear()
  _, metrics = tiny.execute(sim, 2, state=state)
  jax.effects_barrier()
  assert len(set(seen)) == len(seen) == metrics['algorithm/steps'].sum()


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_any_optax_optimizer_trains_a_client_anew_in_every_round():
  algorithm = fedavg(tiny.loss, learning_rate=0.05, batch_size=4, epochs=2, optimizer=optax.adam)
  sim = tiny.build(round_of(algorithm))
  state, metrics = tiny.execute(sim, 8)
  losses = metrics['algorithm/train_loss']
  assert losses[-2:].mean() < 0.75 * losses[:2].mean() and not jax.tree.leaves(state.clients)
