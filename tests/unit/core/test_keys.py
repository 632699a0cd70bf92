"""No two keys of a run coincide, whatever a stage splits off its own."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem.core import Layer, Member, Round, keys, scalar_member
from fedjax_mem.core.generator import GENERATOR
from fedjax_mem.engine.cast import Cast, context

ROUNDS, CLIENTS = 4, 12
LAYERS = ('algorithm', 'select', 'weigh', 'compress', 'mask')


def handed_out(seed=0):
  """Returns a list of (what for, key) of every context that the engine makes."""
  cohort = jax.tree.map(lambda x: x[None], scalar_member(0))
  found = []
  for round, name in itertools.product(range(ROUNDS), LAYERS):
    cast = Cast(*tiny.rooted(seed), jnp.int32(round), None, cohort, {}, {}, jnp.zeros(0))
    layer = Layer(name)
    told = lambda role, one=None, cast=cast, x=layer: context(Round((x,)), x, role, cast, {}, one)
    found.append(((round, name, 'round'), told('server').round_key))
    for role in ('select', 'server', *(['init'] if round == 0 else [])):
      found.append(((round, name, role), told(role).key))
    found.append(((round, name, 'cohort'), told('cohort').key))
    for role in ('client', *(['init'] if round == 0 else [])):
      for client in range(CLIENTS):
        found.append(((round, name, role, client), told(role, scalar_member(client)).key))
  return found


def bits(found) -> np.ndarray:
  return np.asarray(jax.random.key_data(jnp.stack([key for _, key in found])))


@pytest.mark.slow
def test_no_two_coincide():
  found = handed_out()
  assert len(np.unique(bits(found), axis=0)) == len(found) > 300


@pytest.mark.slow
def test_what_a_stage_splits_off_is_nobody_elses():
  found = handed_out()
  own = {tuple(row): what for (what, _), row in zip(found, bits(found), strict=True)}
  children = jax.vmap(lambda k: jax.random.split(k, CLIENTS))(jnp.stack([k for _, k in found]))
  for (what, _), rows in zip(found, np.asarray(jax.random.key_data(children)), strict=True):
    for row in rows:
      assert tuple(row) not in own, (what, 'splits off the key of', own[tuple(row)])


def test_fold_in_and_split_give_the_same_keys_which_is_why_a_role_comes_first():
  key = jax.random.key(3)
  folded = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(4))
  np.testing.assert_array_equal(
    jax.random.key_data(folded), jax.random.key_data(jax.random.split(key, 4))
  )


def test_keys_derived_at_once_are_those_of_each_context():
  cohort = jax.tree.map(lambda x: x[None], scalar_member(0))
  cast = Cast(*tiny.rooted(5), jnp.int32(3), None, cohort, {}, {}, jnp.zeros(0))
  layers = Round(tuple(Layer(name) for name in LAYERS))
  made = jax.jit(lambda: keys.parents(keys.seed_key(5), 3, LAYERS))()
  for i, layer in enumerate(layers):
    for j, role in enumerate(keys.ROLES):
      expected = keys.role_key(keys.layer_key(keys.seed_key(5), 3, layer.name), role)
      assert made[i, j] == expected, (layer.name, role)
    for role, client in (
      ('server', None),
      ('client', scalar_member(7)),
      ('init', scalar_member(7)),
    ):
      alone, at_once = (
        context(layers, layer, role, x, {}, client) for x in (cast, cast.deriving(layers))
      )
      assert alone.key == at_once.key and alone.round_key == at_once.round_key


@pytest.mark.slow
def test_seeds_share_no_key():
  both = np.concatenate([bits(handed_out(0)), bits(handed_out(1))])
  assert len(np.unique(both, axis=0)) == len(both)


def test_an_unknown_role_is_refused():
  with pytest.raises(ValueError, match='nobody'):
    keys.role_key(jax.random.key(0), 'nobody')


def test_a_member_is_one_row_of_a_cohort():
  assert Member._fields == ('id', 'real', 'arrived', 'chance')
  assert tiny.host(scalar_member(3)) == Member(3, True, True, 1.0)


FLAGS = {
  'unpartitionable': lambda: jax.threefry_partitionable(False),
  'another generator': lambda: jax.default_prng_impl('rbg'),
  '64 bits': lambda: jax.enable_x64(True),
  'another seed': lambda: _seed_offset(5),
}


@contextlib.contextmanager
def _seed_offset(number):
  before = jax.config.jax_random_seed_offset
  jax.config.update('jax_random_seed_offset', number)
  try:
    yield
  finally:
    jax.config.update('jax_random_seed_offset', before)


@pytest.mark.parametrize('flag', FLAGS)
def test_no_flag_changes_what_a_key_draws(flag):
  def draw(seed):
    split, bits = jax.random.split(keys.seed_key(seed))
    # By code that names no generator; what it draws may depend on the offset, as it says itself.
    own = jax.random.key_data(jax.random.key(5 - jax.config.jax_random_seed_offset))
    return jax.random.bits(bits, (5,), jnp.uint32), jax.random.key_data(split), own

  def drawn():
    with keys.fixed():
      eager = draw(3)
    return jax.tree.map(np.asarray, (keys.jit(draw)(np.uint32(3)), eager))

  plain = drawn()
  with FLAGS[flag]():
    flagged = drawn()
    assert keys.seed_key(3).dtype == jax.random.key(3, impl=GENERATOR).dtype
  assert jax.tree.map(lambda x: (x.dtype, x.tolist()), plain) == jax.tree.map(
    lambda x: (x.dtype, x.tolist()), flagged
  )
