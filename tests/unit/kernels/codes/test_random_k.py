"""Random coordinates: distinct, equally likely, and an unbiased estimate."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.codes import random_k

KEY = jax.random.key(7)


def _mix(x):
  x = x.astype(np.uint64)
  x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
  x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
  return x ^ (x >> 16)


def _twin(key, size, k):
  """Returns the coordinates by a plain loop over a Feistel network."""
  shift_key, seed_key = jax.random.split(key)
  seeds = np.asarray(jax.random.bits(seed_key, (random_k.ROUNDS,), jnp.uint32))
  shift = int(jax.random.randint(shift_key, (), 0, size, jnp.int32))
  side, out = math.isqrt(size - 1) + 1, []
  for start in range(k):
    at = start
    while True:
      left, right = divmod(at, side)
      for seed in seeds:
        drawn = (int(_mix(np.uint64(right ^ int(seed)))) >> 16) * side >> 16
        left, right = right, (left + drawn) % side
      at = left * side + right
      if at < size:
        break
    out.append((at + shift) % size)
  return np.array(out)


@pytest.mark.slow
@pytest.mark.parametrize('size', [1, 2, 3, 10, 64, 65, 1000])
def test_numpy_twin(size):
  for k in {1, (size + 1) // 2, size}:
    np.testing.assert_array_equal(random_k.indices(KEY, size, k), _twin(KEY, size, k))


@pytest.mark.first(1)
@pytest.mark.parametrize('size, k', [(10**6 + 3, 10**5), (2**31 - 1, 1000), (50_000, 50_000)])
def test_distinct_and_in_range(size, k):
  idx = np.asarray(jax.jit(random_k.indices, static_argnums=(1, 2))(KEY, size, k))
  assert idx.dtype == np.int32 and idx.shape == (k,)
  assert idx.min() >= 0 and idx.max() < size and len(np.unique(idx)) == k


def _draws(count, size, k):
  keys = jax.random.split(KEY, count)
  return np.asarray(jax.jit(jax.vmap(lambda key: random_k.indices(key, size, k)))(keys))


def test_coordinates_and_pairs_are_equally_likely():
  size, k, count = 13, 4, 20_000
  chosen = np.zeros((count, size))
  np.put_along_axis(chosen, _draws(count, size, k), 1, axis=1)
  p = k / size
  z = (chosen.mean(0) - p) / math.sqrt(p * (1 - p) / count)
  assert np.abs(z).max() < 4
  pairs = chosen.T @ chosen / count
  p = k * (k - 1) / (size * (size - 1))
  z = (pairs[np.triu_indices(size, 1)] - p) / math.sqrt(p * (1 - p) / count)
  assert np.abs(z).max() < 4.5


@pytest.mark.slow
def test_unbiased_with_the_stated_error():
  size, k, count = 50, 10, 20_000
  x = jnp.asarray(np.random.default_rng(1).normal(size=size), jnp.float32)

  def estimate(key):
    idx = random_k.indices(key, size, k)
    return random_k.spread(random_k.pick(x, idx) * jnp.float32(size / k), idx, size)

  draws = np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(KEY, count)), np.float64)
  z = (draws.mean(0) - x) / (draws.std(0) / math.sqrt(count))
  assert np.abs(z).max() < 4.5
  error = ((draws - np.asarray(x)) ** 2).sum(1).mean()
  np.testing.assert_allclose(error, (size / k - 1) * float((x**2).sum()), rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_pick_and_spread(dtype):
  x = jnp.arange(1, 101).astype(dtype)
  idx = random_k.indices(KEY, 100, 20)
  sent = random_k.spread(random_k.pick(x, idx), idx, 100)
  assert sent.dtype == dtype and (sent != 0).sum() == 20
  np.testing.assert_array_equal(sent[idx], x[idx])
  np.testing.assert_array_equal(random_k.spread(random_k.pick(sent, idx), idx, 100), sent)


@pytest.mark.slow
def test_vmap_equals_loop_jit_equals_eager_and_one_compilation():
  draw = jax.jit(lambda key: random_k.indices(key, 1000, 100))
  keys = jax.random.split(KEY, 3)
  stacked = jax.vmap(lambda key: random_k.indices(key, 1000, 100))(keys)
  for i, key in enumerate(keys):
    np.testing.assert_array_equal(stacked[i], random_k.indices(key, 1000, 100))
    np.testing.assert_array_equal(stacked[i], draw(key))
  assert draw._cache_size() == 1


@pytest.mark.parametrize(
  'size, k, name', [(0, 1, 'size'), (2**31, 1, 'size'), (5, 0, 'k'), (5, 6, 'k')]
)
def test_bad_arguments(size, k, name):
  with pytest.raises(ValueError, match=f'{name} must be'):
    random_k.indices(KEY, size, k)
