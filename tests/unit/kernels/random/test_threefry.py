"""Random words against the generator of jax, word for word, and their use of keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import random as reference

from fedjax_mem.kernels.loops import parts
from fedjax_mem.kernels.random import threefry


@pytest.mark.first(1)
@pytest.mark.parametrize('count', [1, 7, parts.SMALL // 16 + 1, parts.SMALL + 3])
def test_words_are_those_of_jax(count):
  key = jax.random.key(5)
  seed = jax.random.bits(key, (2,), jnp.uint32)
  counters = jnp.concatenate([jnp.arange(count, dtype=jnp.uint32), jnp.zeros(count, jnp.uint32)])
  expected = reference.threefry_2x32(seed, counters)
  first, second = threefry.words(key, count)
  assert first.dtype == second.dtype == jnp.uint32
  np.testing.assert_array_equal(np.concatenate([first, second]), expected)


@pytest.mark.parametrize('kind', ['threefry2x32', 'rbg'])
def test_keys_of_any_kind_give_words_of_their_own(kind):
  keys = jax.random.split(jax.random.key(0, impl=kind), 3)
  run = jax.jit(lambda key: threefry.words(key, 1000))
  rows = [np.concatenate(run(key)) for key in keys]
  assert np.unique(np.concatenate(rows)).size >= 6000 - 3
  if kind == 'threefry2x32':
    vmapped = np.concatenate(jax.vmap(run)(keys), axis=1)
    np.testing.assert_array_equal(vmapped, rows)
  assert run._cache_size() == 1


def test_bits_are_even():
  words = np.concatenate(threefry.words(jax.random.key(1), 50_000))
  bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 32).mean(0)
  assert np.abs(bits - 0.5).max() < 4.5 * 0.5 / np.sqrt(words.size)
