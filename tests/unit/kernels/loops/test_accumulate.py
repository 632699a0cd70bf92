"""Fused clipping and summing against NumPy in float64 and against `clip`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.loops import accumulate, parts
from fedjax_mem.kernels.norms import clip


def _stack(count=5, size=1000, scale=1.0):
  return jnp.asarray(np.random.default_rng(count).normal(size=(count, size)) * scale, jnp.float32)


def _twin(x, bound, weight):
  x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
  norms = np.linalg.norm(x, axis=1)
  factor = np.minimum(1, bound / np.where(norms > 0, norms, 1))
  return ((weight * factor)[:, None] * x).sum(0), norms


@pytest.mark.first(6)
@pytest.mark.parametrize('scale', [1e-30, 1e-19, 1e-3, 1.0, 1e18, 1e30])
@pytest.mark.parametrize('count', [1, 4, 11])
def test_numpy_twin(scale, count):
  x = _stack(count, scale=scale)
  weight = jnp.asarray(np.random.default_rng(1).uniform(0.5, 2, count), jnp.float32)
  for share in (0.5, 1.0, 2.0):
    bound = share * 31.6 * scale
    total, norms = jax.jit(accumulate.clipped_sum)(x, jnp.float32(bound), weight)
    expected = _twin(x, np.float32(bound), weight)
    np.testing.assert_allclose(norms, expected[1], rtol=1e-6)
    np.testing.assert_allclose(total, expected[0], rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.slow
def test_equals_clip_then_add():
  x, weight = _stack(3), jnp.array([1.0, 2.0, 0.5])
  total, norms = accumulate.clipped_sum(x, 20.0, weight)
  expected = jnp.zeros(1000)
  for row, w, norm in zip(x, weight, norms, strict=True):
    clipped, before = clip.clip_by_global_norm(row, 20.0)
    np.testing.assert_allclose(norm, before, rtol=1e-6)
    expected += w * clipped
  np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-6)


def test_one_update_with_a_running_total():
  x = _stack(4)
  whole, norms = accumulate.clipped_sum(x, 10.0, jnp.ones(4))
  total = jnp.zeros(1000)
  for row, norm in zip(x, norms, strict=True):
    total, one = accumulate.clipped_sum(row, 10.0, 1.0, total)
    np.testing.assert_allclose(one, norm, rtol=1e-6)
  np.testing.assert_allclose(total, whole, rtol=1e-6, atol=1e-7)


def test_an_update_inside_the_bound_is_added_bit_for_bit():
  x = _stack(1)
  np.testing.assert_array_equal(accumulate.clipped_sum(x[0], 1e6, 1.0)[0], x[0])


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_not_finite_stays_so_unless_it_takes_no_part(bad):
  x = _stack(3).at[1, 7].set(bad)
  total, norms = accumulate.clipped_sum(x, 1.0, jnp.ones(3))
  assert np.isnan(total).all() and not np.isfinite(norms[1])
  total, _ = accumulate.clipped_sum(x, 1.0, jnp.array([1.0, 0.0, 1.0]))
  expected, _ = accumulate.clipped_sum(x[np.array([0, 2])], 1.0, jnp.ones(2))
  np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_a_norm_beyond_float32_is_still_clipped():
  total, norm = accumulate.clipped_sum(jnp.full(100, 3e38), 1.0, 1.0)
  assert np.isinf(norm)
  np.testing.assert_allclose(total, np.full(100, 0.1), rtol=1e-6)


def test_zeros_and_bound_zero():
  total, norms = accumulate.clipped_sum(jnp.zeros((2, 5)), 1.0, jnp.ones(2))
  assert not total.any() and not norms.any()
  total, _ = accumulate.clipped_sum(_stack(2), 0.0, jnp.ones(2))
  assert not total.any()


def test_bfloat16_is_summed_in_float32():
  x = _stack(3).astype(jnp.bfloat16)
  total, _ = accumulate.clipped_sum(x, 10.0, jnp.ones(3))
  assert total.dtype == jnp.float32
  np.testing.assert_allclose(total, _twin(x, 10.0, np.ones(3))[0], rtol=1e-5, atol=1e-5)


def test_vmap_equals_loop_and_one_compilation():
  stacks = jnp.stack([_stack(3), _stack(3, scale=1e25)])
  add = jax.jit(lambda *args: accumulate.clipped_sum(*args))
  both, _ = jax.vmap(lambda x: accumulate.clipped_sum(x, 5.0, jnp.ones(3)))(stacks)
  for i, x in enumerate(stacks):
    np.testing.assert_allclose(both[i], add(x, 5.0, jnp.ones(3))[0], rtol=1e-5, atol=1e-6)
  assert add._cache_size() == 1


@pytest.mark.slow
def test_noise_has_its_scale_and_no_part_repeats():
  size = 2 * parts.LARGE + 1000
  noise = np.asarray(accumulate.with_noise(jax.random.key(0), jnp.full(size, 5.0), 2.0)) - 5
  z = abs(noise.mean()) / (2 / np.sqrt(size)), abs(noise.std() / 2 - 1) * np.sqrt(2 * size)
  assert max(z) < 4
  first, second = noise[: parts.LARGE], noise[parts.LARGE : 2 * parts.LARGE]
  assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(parts.LARGE)
  np.testing.assert_array_equal(accumulate.with_noise(jax.random.key(0), jnp.ones(3), 0.0), 1)


def test_bad_arguments():
  with pytest.raises(ValueError, match='bound must be'):
    accumulate.clipped_sum(_stack(), -1.0, jnp.ones(5))
  with pytest.raises(ValueError, match='x must be'):
    accumulate.clipped_sum(_stack(), 1.0, jnp.ones(4))
