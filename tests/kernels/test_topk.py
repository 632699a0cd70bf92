"""Top-k against a stable sort in NumPy, index for index."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels import parts, topk

SIZES = (1, 33, 1000, parts.SMALL, 3 * parts.SMALL + 5, topk.LONG + 1)


def _keys(x):
  bits = np.asarray(x.astype(jnp.float32)).view(np.uint32) & np.uint32(0x7FFFFFFF)
  return np.minimum(bits, np.uint32(topk.NAN_KEY)).astype(np.int64)


def _twin(x, k):
  """Returns the ascending indices of the k largest magnitudes, ties to the lowest index."""
  return np.sort(np.argsort(-_keys(x), kind='stable')[:k])


def _vector(kind, size, dtype=jnp.float32):
  rng = np.random.default_rng(size)
  x = rng.standard_normal(size).astype(np.float32)
  if kind == 'ties':
    x = np.round(2 * x)
  if kind == 'zeros':
    x = np.zeros(size, np.float32)
  if kind == 'few':  # Fewer non-zeros than k, and zeros of both signs.
    x = np.where(rng.random(size) < 0.05, x, -0.0).astype(np.float32)
  if kind == 'subnormal':
    x = rng.integers(-5, 6, size).astype(np.int32).__abs__().astype(np.uint32).view(np.float32)
  if kind == 'special':
    x[rng.integers(0, size, 1 + size // 20)] = np.nan
    x[rng.integers(0, size, 1 + size // 20)] = -np.inf
    x[rng.integers(0, size, 1 + size // 20)] = np.inf
    x.view(np.uint32)[:1] = 0xFFFFFFFF  # A NaN of another payload.
  return jnp.asarray(x).astype(dtype)


@functools.partial(jax.jit, static_argnums=1)
def _all(x, k):
  return topk.threshold(x, k), topk.mask(x, k), *topk.pack(x, k)


@pytest.mark.parametrize('size', SIZES)
def test_numpy_twin(size):
  for kind in ('normal', 'ties', 'zeros', 'few', 'subnormal', 'special'):
    x = _vector(kind, size)
    for k in sorted({1, max(1, size // 10), size}):
      expected = _twin(x, k)
      least, chosen, values, indices = jax.device_get(_all(x, k))
      assert chosen.shape == (size,) and chosen.dtype == bool and indices.dtype == np.int32
      np.testing.assert_array_equal(np.flatnonzero(chosen), expected, kind)
      np.testing.assert_array_equal(indices, expected, kind)
      np.testing.assert_array_equal(
        values.view(np.uint32), np.asarray(x)[expected].view(np.uint32), kind
      )
      assert int(least) == np.sort(_keys(x))[-k]


@pytest.mark.parametrize('kind', ['normal', 'ties', 'zeros', 'few', 'subnormal', 'special'])
@pytest.mark.parametrize('size', SIZES)
def test_kept_is_what_is_unpacked(size, kind):
  x = _vector(kind, size)
  for k in {1, max(1, size // 20), max(1, size // 2), size}:
    half = topk.kept(x.astype(jnp.bfloat16), k)[0]
    assert half.dtype == jnp.bfloat16
    values, words = topk.kept(x, k)
    expected = topk.unpack(*topk.pack(x, k), size)
    np.testing.assert_array_equal(np.asarray(values).view('u4'), np.asarray(expected).view('u4'))
    bits = np.unpackbits(np.asarray(words).view(np.uint8), bitorder='little')
    np.testing.assert_array_equal(bits[:size], topk.mask(x, k))
    assert not bits[size:].any()


def test_bfloat16_keeps_its_dtype():
  x = _vector('normal', 5000, jnp.bfloat16)  # Seven bits of mantissa: many ties.
  values, indices = topk.pack(x, 700)
  assert values.dtype == jnp.bfloat16
  np.testing.assert_array_equal(indices, _twin(x, 700))
  assert topk.unpack(values, indices, 5000).dtype == jnp.bfloat16


def test_nan_counts_as_larger_than_infinity():
  x = jnp.array([np.inf, -np.nan, 1e38, np.nan, -np.inf], jnp.float32)
  np.testing.assert_array_equal(topk.pack(x, 2)[1], [1, 3])
  np.testing.assert_array_equal(topk.pack(x, 3)[1], [0, 1, 3])


def test_unpack_restores_what_was_chosen_and_is_idempotent():
  x = _vector('ties', 3000)
  sent = topk.unpack(*topk.pack(x, 300), 3000)
  np.testing.assert_array_equal(sent, jnp.where(topk.mask(x, 300), x, 0))
  np.testing.assert_array_equal(topk.unpack(*topk.pack(sent, 300), 3000), sent)


def test_error_bound():
  x = _vector('normal', 20000)
  rest = np.asarray(x - topk.unpack(*topk.pack(x, 1000), 20000), np.float64)
  assert (rest**2).sum() <= (1 - 1000 / 20000) * (np.asarray(x, np.float64) ** 2).sum()


def test_vmap_equals_loop_and_jit_equals_eager():
  stack = jnp.stack([_vector(kind, parts.SMALL + 7) for kind in ('normal', 'ties', 'special')])
  values, indices = jax.vmap(lambda x: topk.pack(x, 99))(stack)
  masks = jax.jit(jax.vmap(lambda x: topk.mask(x, 99)))(stack)
  for i, x in enumerate(stack):
    one = topk.pack(x, 99)
    np.testing.assert_array_equal(values[i], one[0])
    np.testing.assert_array_equal(indices[i], one[1])
    np.testing.assert_array_equal(masks[i], topk.mask(x, 99))


def test_second_call_does_not_compile():
  pack = jax.jit(lambda x: topk.pack(x, 10))
  pack(_vector('normal', 1000))
  pack(_vector('zeros', 1000))
  assert pack._cache_size() == 1


@pytest.mark.parametrize('k', [0, -1, 11, 2.0])
def test_bad_k(k):
  with pytest.raises(ValueError, match='k must be'):
    topk.mask(jnp.ones(10), k)


def test_not_a_vector():
  with pytest.raises(ValueError, match='x must be one flat vector'):
    topk.pack(jnp.ones((2, 5)), 1)
