"""Lanes: each the simulation alone, in one program; those of another program are kept apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem import stages
from fedjax_mem.core import compose
from fedjax_mem.engine import lanes

RATES, SEEDS = (0.05, 0.4, 3e38), (3, 4)


def simulation(rate, seed=3, epochs=2, execution='chunk', pop=None):
  train = stages.algorithm.fedavg(tiny.loss, learning_rate=rate, batch_size=4, epochs=epochs)
  layers = compose(train, stages.select.uniform(tiny.N, tiny.C), stages.weigh.by_examples())
  return tiny.build(layers, execution, seed=seed, pop=pop)


def start(seed):
  return jax.tree.map(lambda x: x + 0.01 * seed, tiny.initial())


def lane(rate, seed=3, **how):
  return lanes.lane(simulation(rate, seed, **how), start(seed))


@pytest.fixture(scope='module')
def six():
  return [lane(rate, seed) for rate in RATES for seed in SEEDS]


def alone(x, rounds):
  """The bits of a simulation alone: (state, metrics)."""
  state, metrics = x.sim.run(x.sim.init(x.params), rounds)
  return tiny.host(state), metrics


slow = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.parametrize(
  ('at_once', 'devices'), [(3, 2), pytest.param(1, 1, marks=slow), pytest.param(2, 1, marks=slow)]
)
def test_a_lane_is_the_simulation_alone_and_one_that_diverges_ends_alone(six, at_once, devices):
  assert lanes.alike(six) == [list(range(6))]
  many = lanes.together(six, 8, at_once, devices)
  state, rows, done = many.run(many.init(), 3, np.ones(6, bool))
  assert done[:4].tolist() == [3] * 4 and (done[4:] < 3).all()
  done_first = done
  state, more, done = many.run(state, 2, np.array([1, 1, 1, 0, 0, 0], bool))
  assert done.tolist() == [2, 2, 2, 0, 0, 0] and int(state.round) == 5
  # Without most of its optimizations XLA compiles a loop of lanes otherwise than one simulation.
  exact = at_once == 1 and not jax.config.read('jax_disable_most_optimizations')
  same = tiny.assert_same_bits if exact else tiny.assert_close
  for i, x in enumerate(six[:4]):
    rounds = 5 if i < 3 else 3
    wanted, metrics = alone(x, rounds)
    same(wanted.params, many.params(state, i))
    for name, values in metrics.items():
      found = np.concatenate([rows[name][i], more[name][i]])[:rounds]
      same(values, found)
  for i in (4, 5):
    last = done_first[i] - 1
    assert not rows['finite'][i, last] or rows['clients'][i, last] == 0


def test_seeds_alike_share_their_draws_and_their_examples(six):
  many = lanes.together(six[::2], 8, 3, 1)
  given = many._given
  assert set(given.shared) == {'arrays', 'index', 'start', 'count', 'seed', 'root', 'params'}
  assert set(given.own) == {'of start', 'of round'} and given.own['of start'] == []
  own = lanes.together(six, 8)._given.own
  assert {'seed', 'root', 'params'} <= set(own) and 'arrays' not in own


@slow
def test_other_shapes_and_other_methods_are_other_programs(six):
  fewer = lane(0.1, pop=tiny.population(tiny.client_data([9] * tiny.N)))
  found = [six[0], lane(0.1, epochs=3), fewer, lane(0.1, execution='loop'), lane(0.3)]
  assert lanes.alike(found) == [[0, 4], [1], [2], [3]]


@slow
def test_lanes_of_noise_have_roots_of_their_own_and_resume_with_their_noise():
  def noisy(multiplier, seed):
    mechanism = {'l2_clip_norm': 0.5, 'noise_multiplier': multiplier}
    noise = stages.privacy.tree(**mechanism, restart=8)
    train = tiny.algorithm()
    weigh = stages.weigh.equal(divisor=1)
    layers = compose(train, stages.select.round_robin(tiny.N, 1), weigh, noise)
    return lanes.lane(tiny.build(layers, 'vmap', seed=seed), start(0))

  two = [noisy(0.5, 1), noisy(2.0, 2)]
  many = lanes.together(two, 8, 1)
  state, _, _ = many.run(many.init(), 3, np.ones(2, bool))
  kept = many.kept(state)
  assert not jax.tree.leaves(kept.servers[two[0].sim.setting.layers[-1].name])
  state, _, _ = many.run(many.again(kept, np.ones(2, bool)), 2, np.ones(2, bool))
  for i, x in enumerate(two):
    tiny.assert_close(alone(x, 5)[0].params, many.params(state, i))


def test_bad_arguments_are_named(six):
  with pytest.raises(ValueError, match='a lane must be on one device, got 2'):
    lanes.lane(simulation(0.1, execution='vmap on 2'), start(0))
  with pytest.raises(ValueError, match='at_once must be'):
    lanes.together(six, 8, 0)
  many = lanes.together(six, 8)
  with pytest.raises(ValueError, match='rounds must be'):
    many.run(jnp.zeros(()), 9, np.ones(6, bool))
