"""Tree noise against a dense twin: every node, every estimate, every prefix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny

from fedjax_mem.account import Ledger
from fedjax_mem.core import Draws, Noises
from fedjax_mem.kernels.random import noise
from fedjax_mem.stages import privacy
from fedjax_mem.stages.select import min_separation

C, Z, D, ROUNDS = 0.5, 0.7, 2000, 13
LIKE = {k: jax.ShapeDtypeStruct((D // 2,), jnp.float32) for k in 'ab'}


def dense(restart, honaker, rounds=ROUNDS):
  """Returns the noise of each prefix of the run, [rounds, D], from a whole tree held in memory."""

  @functools.cache
  def node(height, last):  # the node of that height whose last leaf is round `last`
    key = jax.random.fold_in(given.server_key('tree', last), height)
    return tiny.vec(noise.gaussian(key, LIKE, C * Z))

  @functools.cache
  def estimate(height, last):
    own = node(height, last)
    if height == 0 or not honaker:
      return own, 1.0
    (left, v), (right, _) = (estimate(height - 1, x) for x in (last - 2 ** (height - 1), last))
    children, variance = left + right, 2 * v
    share = variance / (1 + variance)
    return share * own + (1 - share) * children, variance / (1 + variance)

  prefixes, before = [], np.zeros(D)
  for round in range(rounds):
    first, t = restart * (round // restart), round % restart + 1
    total, done = np.zeros(D), 0
    for height in reversed(range(t.bit_length())):
      if t >> height & 1:
        done += 2**height
        total += estimate(height, first + done - 1)[0]
    prefixes.append(before + total)
    if t == restart:
      before = prefixes[-1]
  return np.array(prefixes)


@pytest.mark.slow
@pytest.mark.parametrize('restart, honaker', [(13, True), (13, False), (5, True), (1, True)])
def test_the_noise_of_every_prefix_is_that_of_the_dense_tree(restart, honaker):
  layer = privacy.tree(C, Z, restart, honaker=honaker)
  select = min_separation(restart, 1, restart)
  sim = given.build(given.silence(D, restart), layer, select=select)
  prefixes = np.cumsum(given.sums(sim, ROUNDS), 0)
  np.testing.assert_allclose(prefixes, dense(restart, honaker), atol=1e-5)


def test_variances_are_those_of_honakers_estimator():
  scale = (C * Z) ** 2
  height = lambda h: 1 / (2 * (1 - 2.0 ** -(h + 1)))
  for honaker in (True, False):
    prefixes = dense(16, honaker, 16)
    for t in (1, 2, 4, 7, 8, 15, 16):
      bits = [h for h in range(5) if t >> h & 1]
      expected = scale * (sum(map(height, bits)) if honaker else len(bits))
      assert np.var(prefixes[t - 1]) == pytest.approx(expected, rel=0.15)


@pytest.mark.slow
def test_the_state_is_a_few_arrays_and_no_key():
  sim = given.build(given.silence(D, 64), privacy.tree(C, Z, 64), select=min_separation(64, 1, 64))
  _, _, state = given.play(sim, 1)
  own = state.servers['tree']
  assert {k: v.shape for k, v in own['open'].items()} == {k: (7, D // 2) for k in 'ab'}
  assert all(x.dtype in (np.float32, np.int32) for x in jax.tree.leaves(own))


def test_the_ledger_takes_the_mechanism_with_the_sampler():
  layer, select = privacy.tree(C, 5.0, 8), min_separation(40, 4, 8)
  plan = lambda chosen: Ledger.plan(
    chosen.fact(Draws), 'tree', layer.fact(Noises).mechanism, rounds=24, delta=1e-5
  )
  assert 0 < plan(select).entry.epsilon[7] < plan(select).entry.epsilon[-1] < np.inf
  with pytest.raises(ValueError, match=r'rounds between two participations|once in a tree'):
    plan(min_separation(40, 4, 7))


@pytest.mark.parametrize('option', [{'restart': 0}, {'restart': 2.5}, {'honaker': 1}])
def test_bad_options_are_refused_by_name(option):
  with pytest.raises(ValueError, match=f'{next(iter(option))} must be'):
    privacy.tree(C, Z, **({'restart': 4} | option))
