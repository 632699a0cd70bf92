"""The secret root: what comes from it, and that noise in a state can be drawn again from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny

from fedjax_mem.core import Layer, Noises, Stage, compose
from fedjax_mem.engine import simulate
from fedjax_mem.stages import privacy
from fedjax_mem.stages.select import min_separation, poisson, round_robin, uniform
from fedjax_mem.stages.weigh import equal

rng = np.random.default_rng(4)
UPDATES = {'a': rng.normal(size=(9, 4)).astype(np.float32)}
CORRELATED = {
  'tree': lambda: privacy.tree(0.3, 1.0, 3),
  'matrix_factorization': lambda: privacy.matrix_factorization(0.3, 1.0, 9, separation=3),
}


def build(*layers, select=None, **kwargs):
  made = compose(given.algorithm(), select or poisson(9, 0.5), equal(1.0), *layers)
  return simulate(made, {'a': jnp.zeros(4)}, given.population(UPDATES), **kwargs)


def ran(sim, rounds=6, **kwargs):
  """Returns (parameters, ids of the cohorts)."""
  state, metrics = sim.run(sim.init({'a': jnp.zeros(4)}, **kwargs), rounds, **kwargs)
  return np.asarray(state.params['a']), metrics['ids']


@pytest.mark.slow
def test_two_runs_of_one_seed_share_neither_noise_nor_cohorts():
  noise = privacy.central(0.3, 1.0)
  (one, ids), (two, others) = (ran(build(noise, seed=5)) for _ in range(2))
  assert not np.isclose(one, two).any() and (ids != others).any()
  sim = build(noise, seed=5)  # nor do two of one simulation
  (one, ids), (two, others) = ran(sim), ran(sim)
  assert not np.isclose(one, two).any() and (ids != others).any()


@pytest.mark.slow
def test_a_noise_seed_makes_a_run_repeatable_and_equal_to_the_seed_it_is_the_old_run():
  noise = privacy.central(0.3, 1.0)
  first, again = (ran(build(noise, seed=5, noise_seed=8)) for _ in range(2))
  tiny.assert_same_bits(first, again)
  assert (ran(build(noise, seed=5, noise_seed=9))[0] != first[0]).all()
  same = build(noise, seed=5, noise_seed=5)
  state, metrics, _ = same.segment(
    same._init({'a': jnp.zeros(4)}, same.population, *tiny.rooted(5)),
    same.population,
    *tiny.rooted(5),
    np.int32(6),
  )
  tiny.assert_same_bits(
    ran(same), (np.asarray(state.params['a']), np.asarray(metrics.open(1)['ids'])[:6])
  )


@pytest.mark.slow
def test_without_a_claim_a_run_is_a_function_of_its_seed():
  first, again = (ran(build(privacy.central(0.3, 0.0), seed=5)) for _ in range(2))
  tiny.assert_same_bits(first, again)


@pytest.mark.slow
def test_runs_of_one_simulation_with_other_seeds_have_other_noise():
  sim = build(privacy.central(1e-6, 1e6), select=round_robin(9, 9))
  one, two = (ran(sim, seed=s)[0] for s in (1, 2))
  assert (one != two).all()
  rooted = sim.with_root(sim.root)
  one, two, same = (ran(rooted, seed=s)[0] for s in (1, 2, 1))
  assert (one != two).all()
  tiny.assert_same_bits(one, same)
  tiny.assert_same_bits(ran(sim, seed=1, noise_seed=3)[0], ran(sim, seed=2, noise_seed=3)[0])


@pytest.mark.parametrize(
  ('select', 'noise', 'secret'),
  [
    (poisson(9, 0.5), privacy.central(0.3, 1.0), {'select', 'central'}),
    (uniform(9, 3), privacy.central(0.3, 1.0), {'select', 'central'}),
    (round_robin(9, 3), privacy.central(0.3, 1.0), {'central'}),
    (poisson(9, 0.5), privacy.local(0.3, 1.0), {'local'}),
    (min_separation(9, 3, 3), privacy.tree(0.3, 1.0, 3), {'tree'}),
    (poisson(9, 0.5), privacy.central(0.3, 0.0), set()),
  ],
)
def test_noise_and_an_amplifying_draw_have_the_secret_root_and_nothing_else(select, noise, secret):
  layers = noise if not isinstance(noise, Layer) else (noise,)
  sim = build(*layers, select=select)
  assert {name for name, _ in sim.setting.layers.secret} == secret
  assert sim.claims == bool(secret)


def test_the_root_is_not_shown():
  sim = build(privacy.central(0.3, 1.0))
  assert 'root=' not in repr(sim) and str(sim.root.tolist()) not in repr(sim)


@pytest.mark.slow
@pytest.mark.parametrize('name', CORRELATED)
def test_noise_is_not_in_a_bare_state_and_is_drawn_again_bit_for_bit(name):
  sim = build(CORRELATED[name](), select=min_separation(9, 3, 3), max_rounds=16)
  start = sim.init({'a': jnp.zeros(4)})
  tiny.assert_same_bits(sim.with_noise(sim.without_noise(start)), start)
  state, _ = sim.run(start, 5)
  bare = tiny.host(sim.without_noise(state))
  assert bare.servers[name] == ()
  whole = tiny.host(state)
  again = tiny.host(sim.with_noise(bare))
  tiny.assert_same_bits(again, whole)
  assert not sim.rooted and sim.with_root(sim.root).rooted
  rest = sim.run(jax.device_put(again, sim.shardings), 4)
  tiny.assert_same_bits(rest, sim.run(state, 4))


@pytest.mark.slow
def test_another_root_gives_other_noise():
  sim = build(CORRELATED['tree'](), select=min_separation(9, 3, 3))
  state, _ = sim.run(sim.init({'a': jnp.zeros(4)}), 5)
  other = sim.with_root(sim.root + np.uint32(1))
  again = other.with_noise(sim.without_noise(state))
  assert not np.isclose(tiny.vec(again.servers['tree']), tiny.vec(state.servers['tree'])).all()


def test_a_layer_whose_noise_state_is_not_its_mechanisms_is_refused():
  layer = CORRELATED['tree']()
  own = Stage(layer.server.apply, lambda ctx: (jnp.zeros(3), layer.server.init(ctx)))
  wrapped = layer._replace(server=own._replace(facts=(layer.fact(Noises),)))
  with pytest.raises(ValueError, match=r'tree.*state of its mechanism'):
    build(wrapped, select=min_separation(9, 3, 3))
