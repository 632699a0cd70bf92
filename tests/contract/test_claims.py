"""Under a claim of privacy nothing that is released or decided depends on a bad or empty client."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny

from fedjax_mem.core import compose, stack_clients
from fedjax_mem.engine import simulate
from fedjax_mem.stages import aggregate, compress, masks, privacy
from fedjax_mem.stages.algorithm import dp_sgd
from fedjax_mem.stages.select import round_robin
from fedjax_mem.stages.weigh import equal

N, D, C = 5, 12, 0.5
rng = np.random.default_rng(2)
UPDATES = {'a': rng.normal(size=(N, D)).astype(np.float32)}
BITS = 20


def distributed():
  shares = privacy.distributed(C, 0.5, shares=N, clients=N, dimension=D, bits=BITS)
  return (*shares, masks.mask(clients=N, bits=BITS))


NOISE = {
  'central': lambda: (privacy.central(C, 1.0),),
  'laplace': lambda: (privacy.laplace(C, 1.0),),
  'discrete': lambda: (privacy.central(C, 1.0, mechanism='discrete_gaussian'),),
  'adaptive_clip': lambda: (privacy.adaptive_clip(0.4, N),),
  'tree': lambda: (privacy.tree(C, 1.0, 1),),
  'local': lambda: privacy.local(C, 1.0),
  'local_laplace': lambda: privacy.local_laplace(C, 1.0),
  'local_discrete': lambda: privacy.local_discrete(C, 1.0),
  'distributed': distributed,
}


def build(name, execution='vmap', weigh=None):
  return given.build(UPDATES, *NOISE[name](), execution=execution, weigh=weigh)


def released(sim, updates, empty=()):
  """Returns what a round releases and its metrics; the clients in `empty` have no examples."""
  pop = given.population(updates)
  for client in empty:
    pop = dataclasses.replace(pop, count=pop.count.at[client].set(0))
  used = tiny.rooted(3)
  state = sim._init({'a': jnp.zeros(D)}, pop, *used)
  state, metrics, done = sim.segment(state, pop, *used, np.int32(2))
  return tiny.host(state.params), {k: np.array(v)[: int(done)] for k, v in metrics.open(1).items()}


def with_client(value, client=1):
  updates = {'a': UPDATES['a'].copy()}
  updates['a'][client] = value
  return updates


@pytest.mark.slow
@pytest.mark.parametrize('execution', ['vmap', 'loop'])
@pytest.mark.parametrize('name', NOISE)
def test_a_client_that_is_not_finite_or_empty_is_one_that_sends_zeros(name, execution):
  sim = build(name, execution)
  zeros, plain = released(sim, with_client(0.0))
  for updates, empty in [(with_client(np.nan), ()), (with_client(7.0), (1,))]:
    got, metrics = released(sim, updates, empty)
    tiny.assert_same_bits(got, zeros)
    assert (metrics['not_finite'] == -1).all() and len(metrics['clients']) == 2
    np.testing.assert_array_equal(metrics['clients'], plain['clients'])
    assert (metrics['zeroed'] == (0 if empty else 1)).all()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['central', 'local'])
def test_a_run_goes_on_when_nobody_sends_a_finite_update(name):
  sim = build(name)
  got, metrics = released(sim, {'a': np.full((N, D), np.nan, np.float32)})
  assert len(metrics['finite']) == 2 and metrics['finite'].all()
  assert np.isfinite(got['a']).all() and (got['a'] != 0).all()


@pytest.mark.slow
@pytest.mark.parametrize('execution', ['vmap', 'loop'])
def test_an_empty_client_under_dp_sgd_sends_the_noise_of_its_steps(execution):
  loss = lambda params, batch, key: jnp.sum((params['a'][None] - batch['x']) ** 2, -1)
  numbers = {'batch_size': 2, 'steps': 2, 'rate': 0.5, 'l2_clip_norm': 1.0}
  train = dp_sgd(loss, learning_rate=0.1, noise_multiplier=2.0, **numbers)
  pop = stack_clients([{'x': np.ones((3, D), np.float32)} for _ in range(2)])
  layers = compose(train, round_robin(2, 1), equal())
  sim = simulate(
    layers, {'a': jnp.zeros(D)}, pop, noise_seed=0, execution=tiny.MODES[execution], max_rounds=2
  )
  empty = dataclasses.replace(pop, count=pop.count.at[1].set(0))
  state, metrics = sim.run(sim.init({'a': jnp.zeros(D)}, empty), 1, empty)
  first = np.asarray(state.params['a'])
  state, metrics = sim.run(state, 1, empty)
  moved = np.asarray(state.params['a']) - first
  # Two steps of rate 0.1 with noise of 2.0 over a batch of 2, and no gradient.
  assert (metrics['clients'] == 1).all() and (moved != 0).all()
  assert 0.03 < moved.std() < 0.5


def test_without_a_claim_such_a_client_is_left_out_counted_and_named():
  sim = given.build(UPDATES, privacy.central(C, 0.0))
  _, metrics = released(sim, with_client(np.nan))
  assert (metrics['not_finite'].max(1) == 1).all() and (metrics['clients'] == N - 1).all()
  assert 'zeroed' not in metrics


@pytest.mark.slow
@pytest.mark.parametrize('rule', [(), (aggregate.median(),)], ids=['in the loop', 'at the end'])
def test_a_client_that_is_not_finite_keeps_its_state_under_a_claim_too(rule):
  memory = compress.error_feedback({'use': 'top_k', 'k': 2})
  sim = given.build(UPDATES, *NOISE['local'](), memory, *rule, weigh=equal())
  assert sim.claims and sim.setting.divided == (not rule)
  _, _, state = given.play(sim, updates=with_client(np.nan))
  rows = np.concatenate([x.reshape(N, -1) for x in jax.tree.leaves(state.clients)], 1)
  assert (rows[1] == 0).all() and (rows[[0, 2, 3, 4]] != 0).any(1).all()


@pytest.mark.slow
def test_an_empty_client_under_local_noise_sends_noise():
  sim = build('local', weigh=equal())
  alone = given.build({'a': UPDATES['a'][:1]}, *NOISE['local'](), select=round_robin(1, 1))
  assert sim.claims
  got, _ = released(alone, {'a': UPDATES['a'][:1]}, empty=(0,))
  assert (got['a'] != 0).all()
