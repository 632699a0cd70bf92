"""Distributed noise: the bound on the grid, the noise of those that arrive, what is accounted."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny
from reference.loop import plain_round
from scipy import stats

from fedjax_mem import account
from fedjax_mem.core import (
  Bound,
  Bounds,
  Context,
  Draws,
  IncompatibleStages,
  Message,
  Noises,
  Round,
  tree,
)
from fedjax_mem.mechanisms import Gaussian
from fedjax_mem.stages import privacy
from fedjax_mem.stages.masks import mask
from fedjax_mem.stages.privacy.distributed import FINEST, Grid, Setting, _Rounding, finest, grid
from fedjax_mem.stages.select import round_robin

C, Z = 0.4, 0.8
NAMES = ('skellam', 'discrete_gaussian')
SIZE, CLIENTS = 20_000, 3


def layers(name='skellam', *, size=SIZE, clients=CLIENTS, shares=CLIENTS, z=Z, bits=20, **kwargs):
  return privacy.distributed(
    C, z, shares=shares, clients=clients, dimension=size, bits=bits, mechanism=name, **kwargs
  )


def bound_of(made):
  """Returns the L2 bound of a rounded update, in its own units."""
  _, grid, _ = made
  coded = grid.client.fact(Bounds).of(None, Bound())
  return grid.server.fact(Bounds).of(None, coded).l2


def lossy(number, *gone):
  """Returns a sampler of all clients, of which those in `gone[round]` drop out."""
  layer = round_robin(number, number)

  stay = np.ones((len(gone), number), bool)
  for round, ids in enumerate(gone):
    stay[round, ids] = False

  stays = lambda ctx, cohort: cohort.arrived & jnp.asarray(stay)[ctx.round, cohort.id]
  return tiny.changed(layer, lambda ctx, cohort: cohort._replace(arrived=stays(ctx, cohort)))


@functools.cache
def silent(name):
  made = layers(name)
  return given.build(given.silence(SIZE), *made, mask(clients=CLIENTS, bits=20)), made


def scale(made, arrived=CLIENTS, shares=CLIENTS):
  """Returns the standard deviation of the noise on the sum, in the units of an update."""
  bound = bound_of(made)
  return Z * bound * math.sqrt(arrived / shares)


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_the_noise_has_its_scale_and_no_other(name):
  sim, made = silent(name)
  got = given.sums(sim)[0]
  assert stats.kstest(got, stats.norm(scale=scale(made)).cdf).pvalue > 1e-3
  for wrong in (2 / 3, 3 / 2):
    assert stats.kstest(got, stats.norm(scale=scale(made) * wrong).cdf).pvalue < 1e-12


@pytest.mark.slow
def test_the_noise_is_fresh_in_every_round_and_for_every_client():
  sim, _ = silent('skellam')
  rounds = given.sums(sim, rounds=2)
  state = sim.init(tree.zeros(sim.params))
  # Before the mask, each client's own integers.
  sent = plain_round(sim.setting.layers[:-1], state, sim.population, 3).messages
  rows = [*rounds, *(np.asarray(m.update)[:SIZE] for m in sent)]
  for i, a in enumerate(rows):
    for b in rows[:i]:
      # A client's share is a third of the noise of the first round, but in another basis.
      assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(SIZE)


@pytest.mark.slow
def test_who_drops_out_takes_its_share_along():
  """Of four clients with shares of two, three arrive: more noise than is accounted, never less."""
  made = layers(clients=4, shares=2)
  updates = given.silence(SIZE, clients=4)
  cover = mask(clients=4, bits=20)
  sim = given.build(updates, *made, cover, select=lossy(4, [1]))
  (got,), (metrics,), _ = given.play(sim)
  assert metrics['integer_noise/withheld'] == 0 and metrics['mask/recovered'] == 1
  exact = stats.norm(scale=scale(made, 3, 2)).cdf
  assert stats.kstest(np.concatenate([got['a'], got['b']]), exact).pvalue > 1e-3
  assert scale(made, 3, 2) > scale(made, 2, 2)


def test_large_updates_are_rotated_in_the_largest_blocks():
  # Shorter blocks would be flat less often, and the grid would have to be coarser for it.
  *_, last = layers(size=205_000)
  assert last.fact(Noises).mechanism.dimension == 51 * 4096


@pytest.mark.slow
def test_fewer_than_the_shares_release_nothing():
  updates = {'a': np.full((4, 300), 0.1, np.float32)}
  made, cover = layers(size=300, clients=4, shares=3), mask(clients=4, bits=20)
  gone = lossy(4, [0], [0, 2], [0, 1, 2, 3], [])
  released, metrics, _ = given.play(given.build(updates, *made, cover, select=gone), 4)
  assert [m['integer_noise/withheld'] for m in metrics] == [0, 1, 1, 0]
  # The parameters of this round are what was released last.
  first, *others = (x['a'] for x in released)
  assert (first != 0).any()
  assert [(x == first).all() for x in others] == [True, True, False]


@pytest.mark.slow
def test_a_client_that_is_not_finite_brings_its_share_all_the_same():
  updates = {'a': np.full((3, 300), 0.1, np.float32)}
  updates['a'][1, 7] = np.inf
  sim = given.build(updates, *layers(size=300), mask(clients=3, bits=20))
  (got,), (metrics,), _ = given.play(sim)
  assert metrics['integer_noise/withheld'] == 0 and (got['a'] != 0).any()
  assert metrics['not_finite'].max() == -1 and metrics['zeroed'] == 1


RNG = np.random.default_rng(0)
UPDATES = {'a': (RNG.normal(size=(5, 30, 20)) * 0.02).astype(np.float32)}


@functools.cache
def quiet(bits=20, masked=True, execution='vmap'):
  """Returns the round with next to no noise."""
  made = layers(size=600, clients=5, shares=1, z=1e-6, bits=bits)
  cover = (mask(clients=5, bits=bits),) if masked else ()
  return given.build(UPDATES, *made, *cover, execution=execution), made


@pytest.mark.slow
def test_without_noise_it_is_the_clipped_sum():
  sim, _ = quiet()
  norms = np.linalg.norm(UPDATES['a'].reshape(5, -1).astype(np.float64), axis=1)
  assert (norms > C).any()
  clipped = UPDATES['a'] * np.minimum(1, C / norms)[:, None, None]
  # Five roundings to a step of C / 2**14 in another basis.
  step = C / 2**14
  np.testing.assert_allclose(given.sums(sim)[0], clipped.sum(0).ravel(), atol=6 * step)


@pytest.mark.slow
@pytest.mark.parametrize('execution', ['chunk on devices', 'loop'])
def test_masks_and_execution_change_no_bit(execution):
  """Of updates of zeros nothing is rounded, which two programs may do in two ways."""
  silence = {'a': np.zeros((5, 30, 20), np.float32)}
  made = layers(size=600, clients=5, shares=3)
  masked = given.build(silence, *made, mask(clients=5, bits=20), execution=execution)
  state = tiny.host(masked.init(tree.zeros(masked.params)))
  bare = plain_round(masked.setting.layers[:-1], state, masked.population, 3)
  plain = tiny.vec(bare.state.params)
  np.testing.assert_array_equal(given.sums(masked)[0], plain)
  assert np.abs(plain).max() > 0


def sent(updates, made, clients):
  sim = given.build(updates, *made[:2])
  state = sim.init(tree.zeros(sim.params))
  return [m.update for m in plain_round(sim.setting.layers, state, sim.population, 3).messages]


@pytest.mark.slow
@pytest.mark.parametrize('bits', [12, 20])
def test_no_rounded_update_is_beyond_the_bound(bits):
  made = layers(size=600, clients=5, shares=5, bits=bits)
  l2 = stated(made)[1].l2
  wild = {'a': UPDATES['a'] * np.array([1e6, 1.0, 3.0, 1e-3, 0.0], np.float32)[:, None, None]}
  norms = [math.sqrt((np.asarray(x, np.int64) ** 2).sum()) for x in sent(wild, made, 5)]
  assert max(norms) <= l2 and max(norms) > 0.8 * l2


@pytest.mark.slow
def test_rounding_is_drawn_again_until_the_bound_is_kept():
  """With a bound that half of all roundings exceed, all messages keep it, at random still."""
  x = jnp.full(1024, 0.25, jnp.float32)  # of norm 8; the squared norm is 256 ± 14 when rounded

  def draws(squared, count=40):
    half = _Rounding(Grid(8, squared, 0.0), 1.0)
    message, nobody = Message(x, jnp.float32(1), {}), [None] * 7

    def one(number):
      out, _, metrics = half(Context(jax.random.key(number), *nobody), message, ())
      return out.update, metrics['tries']

    return (np.asarray(v, np.int64) for v in jax.jit(jax.vmap(one))(jnp.arange(count)))

  rounded, tries = draws(250)
  assert (rounded**2).sum(1).max() <= 250 and 1.5 < tries.mean() < 6 and tries.max() < 32
  assert set(np.unique(rounded)) == {0, 1} and len(np.unique(rounded, axis=0)) == 40
  # Where chance does not help, all is rounded towards zero.
  rounded, tries = draws(100, 2)
  assert (rounded == 0).all() and (tries == 32).all()


def test_the_bound_is_that_of_the_paper():
  """Kairouz, Liu, Steinke (2021), Algorithm 1, written again with gamma = c / levels."""
  c, d, beta = 2.0, 4096, math.exp(-0.5)
  for levels in (1, 7, 300, 9000):
    g = c / levels
    slack = math.sqrt(2 * math.log(1 / beta)) * g * (c + g * math.sqrt(d) / 2)
    expected = min(c**2 + g**2 * d / 4 + slack, (c + g * math.sqrt(d)) ** 2)
    found = grid(Setting(1.0, 10, 5, d, 4096, beta), levels)
    assert found.squared == math.floor(expected / g**2 * (1 + 1e-12))


def test_the_grid_is_the_finest_with_room():
  for bits in (12, 14, 16):
    setting = Setting(1.0, 100, 80, 8192, 4096, math.exp(-0.5))
    found = finest(setting, bits)
    room = 2 ** (bits - 1) - 1
    assert 4 * found.spread <= room < 4 * grid(setting, found.levels + 1).spread
  assert finest(setting, 30).levels == FINEST


@pytest.mark.slow
def test_the_sum_has_the_room_it_is_said_to_need():
  """All clients send the same at the clip norm, in one block or one value: nothing wraps."""
  even = {'a': np.ones((40, 512), np.float32)}
  spike = {'a': np.eye(1, 512, dtype=np.float32).repeat(40, 0)}
  made = layers(size=512, clients=40, shares=40, bits=13, z=0.5)
  sim = given.build(even, *made, mask(clients=40, bits=13))
  deviation = 0.5 * bound_of(made)
  for updates in (even, spike):
    (got,), (metrics,), _ = given.play(sim, updates=updates)
    assert metrics['grid/filled'] < 0.98
    whole = 40 * C * updates['a'][0] / np.linalg.norm(updates['a'][0])
    assert np.abs(got['a'] - whole).max() < 6 * deviation


def stated(made):
  """Returns (the noise that layers state, the bound on the grid that it is scaled to)."""
  return made[2].fact(Noises).mechanism, Round(made).bound(made[2], 'client', {})


def epsilon(mechanism, bound=None, delta=1e-5):
  sampling = Draws('cyclic', 1000, 100, 100, 10)
  how = {'rounds': 100, 'delta': delta, 'bound': bound, 'accountant': 'rdp'}
  claim = account.claim(sampling, mechanism, **how)
  return claim.epsilon(100, delta)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('z', [0.8, 1.6, 5.0])
def test_at_a_fine_grid_epsilon_is_that_of_central_gaussian_noise(name, z):
  made, bound = stated(layers(name, size=25_000, clients=100, shares=75, bits=24, z=z))
  assert (made.shares, made.dimension) == (75, 25_088) and bound.l2 > 16_000
  gaussian = epsilon(Gaussian(z))
  # In Renyi terms of the same orders; the exact Gaussian's is a little lower still.
  assert gaussian * 0.999 < epsilon(made, bound) < gaussian * 1.04


@pytest.mark.parametrize('name', NAMES)
def test_a_coarse_grid_costs_epsilon_and_noise(name):
  fine, coarse = (
    layers(name, size=25_000, clients=100, shares=75, bits=bits, z=0.05) for bits in (24, 12)
  )
  assert bound_of(coarse) > 1.02 * bound_of(fine)
  few, same = (
    epsilon(made.with_multiplier(0.01), bound) for made, bound in map(stated, (coarse, fine))
  )
  assert few > same


def test_what_is_accounted_does_not_depend_on_who_arrives_beyond_the_shares():
  """More noise is added by more clients; the claim is that of the fewest."""
  one, two = (epsilon(*stated(layers(clients=n, shares=50, size=1000))) for n in (60, 90))
  assert one == pytest.approx(two, rel=1e-3)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('shares', [1, 3])
def test_a_client_more_or_less_is_not_covered(name, shares):
  """With it comes or goes a share of the noise, and whether anything is released at all."""
  made, bound = stated(layers(name, shares=shares))
  draw = Draws('poisson', 1000, 100, 200)
  claim = lambda adjacency: account.claim(
    draw, made, rounds=3, delta=1e-5, adjacency=adjacency, bound=bound
  )
  with pytest.raises(IncompatibleStages, match='share of the noise'):
    claim('add_or_remove_one')
  assert claim(None).adjacency == 'replace_special'
  assert claim('replace_one').epsilon(3, 1e-5) > claim(None).epsilon(3, 1e-5)


@pytest.mark.parametrize(
  'name, value',
  [
    ('l2_clip_norm', 0.0),
    ('noise_multiplier', 0.0),
    ('shares', 0),
    ('shares', 5),
    ('clients', 0),
    ('dimension', 0),
    ('bits', 33),
    ('beta', 1.0),
    ('mechanism', 'laplace'),
  ],
)
def test_bad_arguments_are_refused(name, value):
  known = {'l2_clip_norm': 1.0, 'noise_multiplier': 1.0, 'shares': 2, 'clients': 4, 'dimension': 64}
  with pytest.raises(ValueError, match=f'{name} must be .*got {value!r}'):
    privacy.distributed(**(known | {name: value}))


def test_too_few_bits_are_refused_with_how_many_it_takes():
  with pytest.raises(ValueError, match=r'bits must be at least (\d+) for the noise') as caught:
    layers(clients=100, shares=80, bits=8)
  least = int(str(caught.value).split('at least ')[1].split()[0])
  layers(clients=100, shares=80, bits=least)
  with pytest.raises(ValueError, match='bits must be at least'):
    layers(clients=100, shares=80, bits=least - 1)


@pytest.mark.slow
def test_another_number_of_values_is_refused():
  with pytest.raises(ValueError, match='dimension must be the 600 values of an update, got 601'):
    given.build(UPDATES, *layers(size=601, clients=5), mask(clients=5, bits=20))
