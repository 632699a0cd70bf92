"""The contract that every mechanism of noise keeps, in the tree or out of it.

`pytest tests/contract --mechanism package.module:Class` runs it on a class of your own. Fields
without a default are filled in by name where the suite knows them (`KNOWN`).
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import suite
from scipy import stats

from fedjax_mem import account
from fedjax_mem.account import Ledger, events
from fedjax_mem.core import Bound, Draws, IncompatibleStages
from fedjax_mem.core.mechanism import path
from fedjax_mem.mechanisms import MECHANISMS, Gaussian, find

# Delta is far above what is sound, so that so few samples tell.
pytestmark = pytest.mark.filterwarnings('ignore:delta should be well below')
KNOWN = {'dimension': 1, 'restart': 4, 'sensitivities': (1.0, 1.2, 1.3, 1.4), 'separation': 4}
# As one contribution of a single value has it, in steps of a grid for noise on integers.
BOUND = Bound(6.0, 6.0, 6.0, 1)
Z, ROUNDS, SIZE, DELTA = 1.3, 4, 60_000, 1e-2
APART = Draws('cyclic', 100, 10, 10, 10)
DRAWS = (
  None,
  Draws('poisson', 1000, 20, 1000),
  Draws('without_replacement', 1000, 20, 20),
  Draws('by strata', 1000, 20, 20),
  APART,
)


def made(kind, z=Z):
  fields = {x.name for x in dataclasses.fields(kind)}
  return kind(z, **{k: v for k, v in KNOWN.items() if k in fields})


def pytest_generate_tests(metafunc):
  if 'noise' in metafunc.fixturenames:
    chosen = metafunc.config.getoption('--mechanism')
    kinds = {name: find(name) for name in chosen or MECHANISMS}
    if not chosen:
      kinds['knorm:KNorm'] = suite.example('knorm:KNorm')
    metafunc.parametrize('noise', list(map(made, kinds.values())), ids=list(kinds))


def epsilon(noise, rounds=ROUNDS, draws=APART, **how):
  return account.epsilon(draws, noise, rounds, DELTA, bound=BOUND, **how).epsilon


@functools.cache
def drawn(noise, seed=0, scale=1.0):
  """Returns (values [SIZE] of each round, last state)."""
  bound = Bound(*(x * scale for x in BOUND[:3]), 1)
  like = jnp.zeros(SIZE, jnp.int32 if noise.integers else jnp.float32)
  step = jax.jit(lambda key, state: noise.draw(key, like, bound, state))
  state, rows = noise.init(like), []
  for r in range(ROUNDS):
    row, state = step(jax.random.fold_in(jax.random.key(seed), r), state)
    rows.append(np.asarray(row))
  return rows, state


def test_it_is_frozen_data_that_comes_back_from_a_ledger(noise):
  assert hash(noise) == hash(made(type(noise))) and noise == made(type(noise))
  assert noise.with_multiplier(2.0) == made(type(noise), 2.0) != noise
  assert find(path(noise)) is type(noise)
  with pytest.raises(dataclasses.FrozenInstanceError):
    noise.noise_multiplier = 2.0
  with pytest.raises(ValueError, match='noise_multiplier must be'):
    noise.with_multiplier(0.0)
  book = Ledger.plan(APART, 'noise', noise, rounds=ROUNDS, delta=DELTA, bound=BOUND)
  assert Ledger.from_dict(json.loads(json.dumps(book.to_dict()))).entry == book.entry


@pytest.mark.slow
def test_more_noise_costs_less_and_more_rounds_cost_more(noise):
  dearer = 0
  for draws in DRAWS:
    held = noise.adjacencies(draws)
    assert held and set(held) <= set(events.ADJACENCIES) and len(set(held)) == len(held)
    for adjacency in held:
      how = {'draws': draws, 'adjacency': adjacency}
      try:
        cost = epsilon(noise, **how)
      except IncompatibleStages:
        continue  # no accountant has the event: refused, not guessed
      half = epsilon(noise.with_multiplier(2 * Z), **how)
      assert 0 <= half <= cost < np.inf and epsilon(noise, 1, **how) <= cost
      dearer += half < cost
  assert dearer


def test_the_trajectory_is_epsilon_after_each_round(noise):
  how = {'rounds': ROUNDS, 'delta': DELTA, 'bound': BOUND}
  made = account.claim(APART, noise, **how)
  path = made.trajectory(ROUNDS, DELTA).epsilon
  stated = [made.epsilon(r, DELTA) for r in range(1, ROUNDS + 1)]
  np.testing.assert_allclose(path, stated, rtol=1e-6)


def test_a_client_replaced_costs_no_less_than_one_left_out(noise):
  if {'replace_one', 'replace_special'} - set(noise.adjacencies(APART)):
    return
  try:
    replaced = epsilon(noise, adjacency='replace_one')
  except IncompatibleStages:
    return  # no accountant has the event
  assert replaced >= epsilon(noise, adjacency='replace_special')


@pytest.mark.slow
def test_what_is_drawn_follows_from_the_key_and_nothing_else(noise):
  rows, state = drawn(noise)
  wanted = np.int32 if noise.integers else np.float32
  assert all(x.dtype == wanted and np.isfinite(x).all() for x in rows)
  like = jnp.zeros(SIZE, wanted)
  eager, _ = noise.draw(jax.random.fold_in(jax.random.key(0), 0), like, BOUND, noise.init(like))
  np.testing.assert_allclose(eager, rows[0], rtol=1e-5, atol=1e-5)
  other, _ = drawn(noise, seed=1)
  for a, b in ((rows[0], other[0]), (rows[0], rows[1])):
    if a is rows[0] and b is rows[1] and noise.correlated:
      continue
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(SIZE)
  shapes = lambda t: [(x.shape, x.dtype) for x in jax.tree.leaves(t)]
  assert shapes(state) == shapes(noise.init(like))
  assert not jax.tree.leaves(state) or noise.correlated


def test_it_is_scaled_to_the_bound(noise):
  one, two = np.std(drawn(noise)[0][0]), np.std(drawn(noise, scale=2.0)[0][0])
  assert two / one == pytest.approx(2.0, rel=0.03)


def spread(noise):
  """Returns the noise of many keys on a tree of 31 values, [4000, 31]."""
  of = jnp.int32 if noise.integers else jnp.float32
  like = {'a': jnp.zeros((3, 5), of), 'b': jnp.zeros((3, 5), of), 'c': jnp.zeros((), of)}
  if any(x.name == 'dimension' for x in dataclasses.fields(noise)):
    noise = dataclasses.replace(noise, dimension=31)
  first = lambda key: noise.draw(key, like, BOUND, noise.init(like))[0]
  rows = jax.jit(jax.vmap(first))(jax.random.split(jax.random.key(5), 4000))
  assert jax.tree.map(lambda x: (x.shape[1:], x.dtype), rows) == jax.tree.map(
    lambda x: (x.shape, x.dtype), like
  )
  return np.concatenate([np.asarray(x).reshape(4000, -1) for x in jax.tree.leaves(rows)], 1)


def test_every_value_of_every_array_has_noise_of_its_own(noise):
  rows = spread(noise)
  scale = rows.std(0)
  np.testing.assert_allclose(scale, np.median(scale), rtol=0.2)
  apart = np.corrcoef(rows.T) - np.eye(31)
  assert np.abs(apart).max() < 6 / np.sqrt(4000)


@dataclasses.dataclass(frozen=True)
class SameLeaf(Gaussian):
  """Draws every array of a tree from one key."""

  def draw(self, key, like, bound, state):
    """Returns (noise that is the same in arrays of one shape, state)."""
    one = lambda x: super(SameLeaf, self).draw(key, x, bound, state)[0]
    return jax.tree.map(one, like), state


@dataclasses.dataclass(frozen=True)
class FirstOnly(Gaussian):
  """Draws noise for one array of a tree, and none for the others."""

  def draw(self, key, like, bound, state):
    """Returns (noise of the first array and zeros, state)."""
    noise, state = super().draw(key, like, bound, state)
    first, *rest = jax.tree.leaves(noise)
    leaves = [first, *(0 * x for x in rest)]
    return jax.tree.unflatten(jax.tree.structure(noise), leaves), state


@pytest.mark.parametrize('kind', [SameLeaf, FirstOnly])
def test_noise_that_some_values_share_or_lack_is_found(kind):
  with pytest.raises(AssertionError):
    test_every_value_of_every_array_has_noise_of_its_own(kind(Z))


def test_the_state_is_replayed_from_the_keys(noise):
  like = jnp.zeros(SIZE, jnp.int32 if noise.integers else jnp.float32)
  of = lambda r: jax.random.fold_in(jax.random.key(0), r)
  one = lambda r, state: noise.draw(of(r), like, BOUND, state)[1]
  again = jax.jit(lambda: jax.lax.fori_loop(0, ROUNDS, one, noise.init(like)))()
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(drawn(noise)[1]), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def at_least(values, shift):
  """Returns an epsilon that values prove, with a doubt of 1e-4 in all.

  Of noise alone and noise that is moved: whether a value is above a threshold tells them apart.
  """
  found = []
  for t in np.quantile(values, np.linspace(0.5, 0.9995, 60)):
    alone, moved = int((values > t).sum()), int((values > t - shift).sum())
    doubt = 1e-4 / 120
    high = stats.beta.ppf(1 - doubt, alone + 1, SIZE - alone)
    low = stats.beta.ppf(doubt, moved, SIZE - moved + 1) if moved else 0.0
    found.append(np.log(max(low - DELTA, 1e-300) / high))
  return max(found)


def released(noise):
  """Returns the noise of many first rounds on a single value, [SIZE]; of all shares, if any."""
  like = jnp.zeros(1, jnp.int32 if noise.integers else jnp.float32)
  first = lambda key: noise.draw(key, like, BOUND, noise.init(like))[0][0]
  many = jax.jit(jax.vmap(first))
  shares = noise.shares if noise.carried else 1
  keys = [jax.random.split(jax.random.key(s), SIZE) for s in range(shares)]
  return sum(np.asarray(many(k), np.float64) for k in keys)


@pytest.mark.first(1)
def test_what_is_drawn_does_not_refute_what_it_is_said_to_cost(noise):
  values = released(noise)
  for adjacency, shift in (('replace_special', BOUND.l2), ('replace_one', 2 * BOUND.l2)):
    try:
      claimed = epsilon(noise, 1, adjacency=adjacency)
    except IncompatibleStages:
      continue  # nothing is claimed
    assert at_least(values, shift) <= claimed


@dataclasses.dataclass(frozen=True)
class TwoThirds(Gaussian):
  """Draws less than it is accounted for."""

  def draw(self, key, like, bound, state):
    """Returns (noise of two thirds of its scale, state)."""
    noise, state = super().draw(key, like, bound, state)
    return 2 / 3 * noise, state


def test_noise_of_two_thirds_is_refuted():
  weak = TwoThirds(Z)
  assert at_least(released(weak), BOUND.l2) > epsilon(weak, 1, adjacency='replace_special')
  fine = Gaussian(Z)
  assert at_least(released(fine), BOUND.l2) > 0.5 * epsilon(fine, 1, adjacency='replace_special')


def test_fields_that_the_suite_does_not_know_are_told():
  @dataclasses.dataclass(frozen=True)
  class Odd(Gaussian):
    mystery: int = dataclasses.field(kw_only=True)

  with pytest.raises(TypeError, match='mystery'):
    made(Odd)
  assert suite.KINDS['test_mechanisms.py'] == '--mechanism'
