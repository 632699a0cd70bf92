"""Central privacy: NumPy twins, noise off, and the traps met in published systems."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import given, tiny

from fedjax_mem import mechanisms
from fedjax_mem.core import Noises, Round, compose
from fedjax_mem.kernels.random import noise
from fedjax_mem.optim import fedadam
from fedjax_mem.stages import privacy
from fedjax_mem.stages.algorithm import fedavg, fedsgd
from fedjax_mem.stages.weigh import capped, equal

C, Z = 0.5, 1.3
rng = np.random.default_rng(2)
UPDATES = {
  'a': rng.normal(size=(5, 3, 2)).astype(np.float32) * [[[0.1]], [[1]], [[5]], [[0]], [[0.2]]],
  'b': rng.normal(size=(5, 4)).astype(np.float32),
}
UPDATES = {k: v.astype(np.float32) for k, v in UPDATES.items()}
UPDATES['b'][3] = 0  # client 3 sends zeros: nothing may be divided by its norm


def rows():
  return np.concatenate([UPDATES['a'].reshape(5, -1), UPDATES['b']], 1).astype(np.float64)


def like():
  return {k: jax.ShapeDtypeStruct(v.shape[1:], jnp.float32) for k, v in UPDATES.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
  'layer, power, draw',
  [
    (privacy.central(C, Z), 2, noise.gaussian),
    (privacy.laplace(C, Z), 1, noise.laplace),
  ],
)
def test_a_round_is_its_numpy_twin(layer, power, draw):
  norms = np.linalg.norm(rows(), power, axis=1)
  factor = np.minimum(1, C / np.maximum(norms, 1e-300))
  (released,), (metrics,), _ = given.play(given.build(UPDATES, layer))
  added = draw(given.server_key(layer.name), like(), C * Z)
  expected = (factor[:, None] * rows()).sum(0) + tiny.vec(added)
  np.testing.assert_allclose(tiny.vec(released), expected, rtol=1e-5, atol=1e-5)
  name = layer.name
  assert metrics[f'{name}/clipped'] == pytest.approx((norms > C).mean())
  assert metrics[f'{name}/norm'] == pytest.approx(norms.mean(), rel=1e-5)


@pytest.mark.slow
def test_a_discrete_round_lies_on_the_grid_and_is_its_twin():
  levels = 64
  layer = privacy.central(C, Z, mechanism='discrete_gaussian', levels=levels)
  (released,), _, _ = given.play(given.build(UPDATES, layer))
  grid = tiny.vec(released) / (C / levels)
  np.testing.assert_allclose(grid, np.round(grid), atol=1e-3)
  norms = np.linalg.norm(rows(), axis=1)
  scaled = (
    rows() * np.minimum(1, C * (1 - 2**-20) / np.maximum(norms, 1e-300))[:, None] / (C / levels)
  )
  points = np.round(scaled)
  outside = (points**2).sum(1) > levels**2
  points[outside] = np.trunc(scaled[outside])
  assert outside.any() and not outside.all()
  table = noise.discrete_table(Z * levels)
  added = noise.tabled(given.server_key('central'), like(), table)
  np.testing.assert_array_equal(np.round(grid), points.sum(0) + tiny.vec(added))


@pytest.mark.slow
def test_a_metric_is_covered_by_a_claim_only_if_it_says_so():
  covered = {'adaptive_clip': {'adaptive_clip/bound', 'adaptive_clip/below'}}
  for made in (privacy.adaptive_clip(0.4, 6.0), privacy.local(C, Z), privacy.tree(C, Z, 1)):
    sim = given.build({'a': UPDATES['b']}, made)
    layer = sim.setting.layers[-1]
    assert sim.covered == {'finite'} | covered.get(layer.name, set())
    _, (metrics,), _ = given.play(sim)
    assert sim.covered < set(metrics) and any(
      k.endswith('/norm') for k in set(metrics) - sim.covered
    )


QUIET = {
  'central': lambda: privacy.central(1e6, 0.0),
  'per layer': lambda: privacy.central(1e6, 0.0, per_layer=True),
  'laplace': lambda: privacy.laplace(1e6, 0.0),
  'local': lambda: privacy.local(1e6, 0.0),
  'adaptive': lambda: privacy.adaptive_clip(0.0, 6.0, initial_l2_clip_norm=1e6),
}


@functools.cache
def trained(mode, name=None):
  """Returns the parameters after two rounds of FedAvg, of two epochs so that it is not pooled."""
  base = fedavg(tiny.loss, learning_rate=0.1, batch_size=4, epochs=2)
  more = () if name is None else (QUIET[name](),)
  round = compose(base, tiny.rota(), equal(), *more)
  assert not round.having(Noises)
  return tiny.execute(tiny.build(round, mode), 2)[0].params


@pytest.mark.slow
@pytest.mark.parametrize(
  'mode, name',
  [('loop', 'central'), ('chunk on devices', 'central'), *(('vmap', x) for x in QUIET)],
)
def test_without_noise_and_within_the_bound_it_is_the_plain_round_bit_for_bit(mode, name):
  tiny.assert_same_bits(trained(mode, name), trained(mode))


@pytest.mark.slow
def test_the_noise_goes_into_the_server_optimizer_and_is_not_added_after_it():
  momentum = optax.sgd(1.0, momentum=0.9)
  layers = compose(
    fedsgd(tiny.loss, batch_size=16, server_optimizer=momentum), tiny.rota(), equal(6.0)
  )
  state, _ = tiny.execute(tiny.build((*layers, privacy.central(C, 40.0))), 2)
  plain, _ = tiny.execute(tiny.build((*layers, privacy.central(C, 0.0))), 2)
  trace = lambda s: tiny.vec(s.servers['algorithm'])
  assert np.std(trace(state) - trace(plain)) > C * 40 / 6 / 2
  steps = tiny.vec(tiny.initial()) - tiny.vec(state.params)
  # w0 - w2 = g1 + (g2 + 0.9 g1), and the trace is g2 + 0.9 g1: g1 has noise of its own.
  assert np.std(steps - trace(state)) > C * 40 / 6 / 2


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_the_moments_of_an_adaptive_server_optimizer_come_from_the_noised_sum():
  layers = compose(
    fedsgd(tiny.loss, batch_size=16, server_optimizer=fedadam(0.1)), tiny.rota(), equal(6.0)
  )
  noisy, quiet = (
    tiny.execute(tiny.build((*layers, privacy.central(C, z))), 1)[0].servers['algorithm']
    for z in (40.0, 0.0)
  )
  for a, b in zip(jax.tree.leaves(noisy), jax.tree.leaves(quiet), strict=True):
    if np.size(a) > 1:
      assert not np.allclose(a, b)


@pytest.mark.slow
def test_a_capped_weight_is_within_the_clip():
  # 9 examples of a cap of 3 count as 3; the weight cannot enlarge what was clipped.
  layers = compose(
    tiny.algorithm(1.0), tiny.rota(), capped(3.0, divisor=1.0), privacy.central(C, 0.0)
  )
  start = tiny.build(layers).init(tiny.initial())
  before = tiny.vec(start.params)
  state, metrics = tiny.execute(tiny.build(layers), 1)
  assert np.linalg.norm(tiny.vec(state.params) - before) <= C * metrics['clients'][0]


@pytest.mark.slow
def test_an_empty_cohort_releases_noise_all_the_same():
  sim = given.build(given.silence(2000), privacy.central(C, Z))
  pop = given.population(given.silence(2000))
  nobody = type(pop)(pop.arrays, pop.index, pop.start, pop.count * 0)
  state = sim._init(
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sim.params), nobody, *tiny.rooted(3)
  )
  state, _, _ = sim.segment(state, nobody, *tiny.rooted(3), np.int32(1))
  assert np.std(tiny.vec(state.params)) == pytest.approx(C * Z, rel=0.1)


@pytest.mark.parametrize('option', ['mechanism', 'per_layer', 'levels'])
def test_bad_options_are_refused_by_name(option):
  for bad in ({'mechanism': 'gausian'}, {'per_layer': 'yes'}, {'levels': 0}, {'levels': 10**6}):
    if option in bad:
      with pytest.raises(ValueError, match=option):
        privacy.central(C, Z, **bad)
  with pytest.raises(ValueError, match='use laplace'):
    privacy.central(C, Z, mechanism='laplace')


def test_the_mechanism_says_what_ran():
  assert privacy.central(C, Z).fact(Noises).mechanism.noise_multiplier == Z
  discrete = privacy.central(C, Z, mechanism='discrete_gaussian', levels=100)
  assert discrete.fact(Noises) == Noises(mechanisms.DiscreteGaussian(Z))
  assert Round([discrete]).bound(discrete, 'server', {}).l2 == 100.0
  assert privacy.laplace(C, Z).fact(Noises).mechanism == mechanisms.Laplace(Z)
  ball, local = privacy.local(C, Z)
  assert local.client.fact(Noises) == Noises(mechanisms.Gaussian(Z), 'local')
  assert Round([ball, local]).bound(local, 'client', {}).l2 == C
