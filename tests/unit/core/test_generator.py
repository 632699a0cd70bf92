"""Every word of the generator against jax's own, and against the authors' published ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import random as reference

from fedjax_mem.core import keys
from fedjax_mem.core.generator import GENERATOR, block


def pair(seed=7):
  """Returns (our key, jax's key) of the same words."""
  theirs = jax.random.key(seed, impl='threefry2x32')
  return jax.random.wrap_key_data(jax.random.key_data(theirs), impl=GENERATOR), theirs


def words(made):
  typed = jnp.issubdtype(made.dtype, jax.dtypes.prng_key)
  return np.asarray(jax.random.key_data(made) if typed else made)


DRAWS = {
  'a number folded in': lambda key: jax.random.fold_in(key, 2**32 - 1),
  'many folded in': lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(5)),
  'a split': lambda key: jax.random.split(key, (2, 3)),
  'a split of a split': lambda key: jax.vmap(jax.random.split)(jax.random.split(key, 3)),
  'bits': lambda key: jax.random.bits(key, (3, 5, 2), jnp.uint32),
  'one word': lambda key: jax.random.bits(key, (), jnp.uint32),
  'bytes': lambda key: jax.random.bits(key, (9,), jnp.uint8),
  'half words': lambda key: jax.random.bits(key, (9,), jnp.uint16),
  'no words': lambda key: jax.random.bits(key, (0, 4), jnp.uint32),
  'uniforms': lambda key: jax.random.uniform(key, (7,)),
  'normals': lambda key: jax.random.normal(jax.random.fold_in(key, 1), (101,)),
  'integers': lambda key: jax.random.randint(key, (50,), -3, 1000),
  'a permutation': lambda key: jax.random.permutation(key, 100),
}


@pytest.mark.parametrize('mode', ['jit', pytest.param('eager', marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', DRAWS)
def test_draws_are_those_of_jax(name, mode):
  ours, theirs = pair()
  draw = jax.jit(DRAWS[name]) if mode == 'jit' else DRAWS[name]
  with keys.fixed():
    expected = words(draw(theirs))
  with jax.threefry_partitionable(False):  # no flag changes what ours draws
    found = words(draw(ours))
  assert found.dtype == expected.dtype
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize('draw', ['bits', 'uniform'])
def test_words_of_64_bits_are_those_of_jax(draw):
  with jax.enable_x64(True):
    kind = {'bits': jnp.uint64, 'uniform': jnp.float64}[draw]
    ours, theirs = (getattr(jax.random, draw)(key, (6,), kind) for key in pair())
    assert ours.dtype == kind
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('seed', [0, 1, 2**32 - 1, np.uint32(2**32 - 1), np.int32(-1)])
def test_seeds_are_those_of_jax(seed):
  expected = jax.random.key_data(jax.random.key(seed, impl='threefry2x32'))
  np.testing.assert_array_equal(jax.random.key_data(keys.seed_key(seed)), expected)


def test_seeds_of_64_bits_are_those_of_jax():
  with jax.enable_x64(True):
    for seed in (2**32 + 5, 2**63 - 1):
      expected = jax.random.key_data(jax.random.key(seed, impl='threefry2x32'))
      np.testing.assert_array_equal(jax.random.key_data(keys.seed_key(seed)), expected)


def test_more_words_than_a_counter_of_32_bits_has_come_from_jax():
  ours, _ = pair()
  text = lambda shape: jax.jit(lambda key: jax.random.bits(key, shape)).lower(ours).as_text()
  assert 'threefry2x32' in text((1 << 16, 1 << 16))
  assert 'threefry2x32' not in text((1 << 16, 1 << 15))


def test_both_halves_of_the_counter_count():
  low, high = jnp.array([0, 0xFFFFFFFF, 3], jnp.uint32), jnp.array([1, 2, 0xFFFFFFFF], jnp.uint32)
  seed = jnp.array([0x13198A2E, 0x03707344], jnp.uint32)
  found = block((seed[0], seed[1]), low, high)
  expected = reference.threefry_2x32(seed, jnp.concatenate([low, high]))
  np.testing.assert_array_equal(np.concatenate(found), expected)


def test_known_answers():
  """Those that the authors' library, Random123, is tested with."""
  zeros, ones = jnp.zeros(1, jnp.uint32), jnp.full(1, 0xFFFFFFFF, jnp.uint32)
  for x, expected in ((zeros, (0x6B200159, 0x99BA4EFE)), (ones, (0x1CB996FC, 0xBB002BE7))):
    found = block((x[0], x[0]), x, x)
    assert tuple(int(word[0]) for word in found) == expected
