"""The rotation against SciPy's matrix; DRIVE and EDEN against theory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, linalg, stats

from fedjax_mem.kernels.codes import hadamard, rotate
from fedjax_mem.kernels.loops import parts

KEY = jax.random.key(11)
# bits -> (mean squared error of the Lloyd-Max quantiser of a standard normal, vNMSE unbiased).
THEORY = {
  1: (1 - 2 / math.pi, math.pi / 2 - 1),
  2: (0.1175, 0.1331),
  3: (0.03454, 0.03578),
  4: (0.009497, 0.009588),
}


def _vector(size, seed=0):
  rng = np.random.default_rng(seed)
  # One sign and a trend: nothing like a normal vector before it is rotated.
  return jnp.asarray(rng.exponential(size=size) * np.linspace(0, 5, size), jnp.float32)


def _error(estimate, x):
  x = np.asarray(x, np.float64)
  return ((np.asarray(estimate, np.float64) - x) ** 2).sum() / (x**2).sum()


@pytest.mark.first(5)
@pytest.mark.parametrize('block', [1, 2, 8, 16, 32, 512, 4096])
def test_hadamard_matrix(block):
  x = jnp.asarray(np.random.default_rng(0).normal(size=(block, 3)), jnp.float32)
  expected = linalg.hadamard(block) @ np.asarray(x, np.float64) / math.sqrt(block)
  np.testing.assert_allclose(hadamard.hadamard(x), expected, atol=2e-6)
  np.testing.assert_allclose(hadamard.hadamard(hadamard.hadamard(x)), x, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize('size, block', [(1, 4), (100, 64), (64, 64), (1000, None), (150_000, 512)])
def test_rotation_keeps_norms_and_is_undone(size, block):
  x = _vector(size, 1) + 1
  y = rotate.rotate(KEY, x, block)
  chosen = block or hadamard.block_size(size)
  assert y.dtype == jnp.float32 and y.shape == (hadamard.padded_size(size, chosen),)
  np.testing.assert_allclose(jnp.linalg.norm(y), jnp.linalg.norm(x), rtol=1e-5)
  np.testing.assert_allclose(rotate.unrotate(KEY, y, size, block), x, rtol=1e-4, atol=1e-4)


def test_signs_are_fair_and_no_part_repeats():
  size = 2 * parts.LARGE
  signs = np.asarray(rotate.rotate(KEY, jnp.ones(size), 1))
  assert set(np.unique(signs)) == {-1.0, 1.0}
  assert abs(signs.mean()) < 4 / math.sqrt(size)
  assert abs((signs[: size // 2] * signs[size // 2 :]).mean()) < 4 / math.sqrt(size / 2)
  assert abs((signs[1:] * signs[:-1]).mean()) < 4 / math.sqrt(size)


def test_block_sizes():
  for size in (10**5, 123_457, 421_642, 1_199_882, 1_663_370, 10**7):
    block = hadamard.block_size(size)
    assert block & (block - 1) == 0 and block >= 1024
    assert hadamard.padded_size(size, block) - size < 0.02 * size
  rng = np.random.default_rng(0)
  for size in rng.integers(6400, 10**5, 200):
    assert -int(size) % hadamard.block_size(int(size)) < 0.02 * size
  assert hadamard.block_size(10) == 64 and hadamard.block_size(1024) == 1024


@pytest.mark.parametrize('bits', [1, 2, 3, 4])
def test_centroids_are_those_of_lloyd_and_max(bits):
  table = rotate.centroids(bits).astype(np.float64)
  edges = np.concatenate([[-np.inf], (table[1:] + table[:-1]) / 2, [np.inf]])
  mass = np.diff(stats.norm.cdf(edges))
  mean = -np.diff(stats.norm.pdf(edges)) / mass
  np.testing.assert_allclose(table, mean, atol=2e-6)
  error = sum(
    integrate.quad(lambda z, c=c: (z - c) ** 2 * stats.norm.pdf(z), max(a, -12), min(b, 12))[0]
    for a, b, c in zip(edges[:-1], edges[1:], table, strict=True)
  )
  np.testing.assert_allclose(error, THEORY[bits][0], rtol=1e-3)
  np.testing.assert_allclose(1 / (1 - error) - 1, THEORY[bits][1], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize('bits', [1, 2, 3, 4])
def test_eden_reproduces_the_theoretical_error(bits):
  size = 2_000_000
  x = _vector(size)
  codes, scale = rotate.eden_encode(KEY, x, bits)
  assert codes.dtype == jnp.uint8 and int(codes.max()) == 2**bits - 1
  error = _error(rotate.eden_decode(KEY, codes, scale, bits, size), x)
  np.testing.assert_allclose(error, THEORY[bits][1], rtol=0.01)


@pytest.mark.slow
def test_drive_is_eden_of_one_bit_and_has_a_biased_form_of_less_error():
  size = 300_000
  x = _vector(size)
  codes, scale = rotate.drive_encode(KEY, x)
  twin = rotate.eden_encode(KEY, x, 1)
  np.testing.assert_array_equal(codes, twin[0])
  np.testing.assert_allclose(scale, twin[1] * rotate.centroids(1)[1], rtol=1e-5)
  error = _error(rotate.drive_decode(KEY, codes, scale, size), x)
  np.testing.assert_allclose(error, math.pi / 2 - 1, rtol=0.01)
  codes, scale = rotate.drive_encode(KEY, x, unbiased=False)
  error = _error(rotate.drive_decode(KEY, codes, scale, size), x)
  np.testing.assert_allclose(error, 1 - 2 / math.pi, rtol=0.01)


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_eden_twin(bits):
  x, block = _vector(1000), 128
  # One tile, its blocks the columns.
  y = np.asarray(rotate.rotate(KEY, x, block), np.float64).reshape(block, -1)
  table = rotate.centroids(bits).astype(np.float64)
  z = y / np.sqrt((y**2).mean(0))
  nearest = np.abs(z[..., None] - table).argmin(-1)
  codes, scale = rotate.eden_encode(KEY, x, bits, block)
  np.testing.assert_array_equal(np.asarray(codes).reshape(block, -1), nearest)
  expected = (y**2).sum(0) / (y * table[nearest]).sum(0)
  np.testing.assert_allclose(scale, expected, rtol=1e-5)


@pytest.mark.parametrize('bits', [1, 4])
def test_the_scale_of_a_large_block_of_equal_magnitudes(bits):
  """A one-hot vector, whose rotation is that: 65,536 equal terms, which must not round away."""
  block = 1 << 16
  x = jnp.zeros(block).at[3].set(0.7)
  y = np.asarray(rotate.rotate(KEY, x, block), np.float64)
  codes, scale = rotate.eden_encode(KEY, x, bits, block)
  inner = (y * rotate.centroids(bits).astype(np.float64)[np.asarray(codes)]).sum()
  np.testing.assert_allclose(scale, (y**2).sum() / inner, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('bits, block', [(1, None), (3, 8), (2, 4096)])
def test_in_one_go_over_several_tiles(bits, block):
  """A tile of blocks of 4,096 has twice as many values."""
  size = 2 * max(parts.SMALL, hadamard.LANES * (block or 1)) + 31
  x = _vector(size)

  def both(x):
    code = rotate.eden_encode(KEY, x, bits, block)
    return rotate.eden(KEY, x, bits, block), rotate.eden_decode(KEY, *code, bits, size, block)

  np.testing.assert_array_equal(*jax.jit(both)(x))


@pytest.mark.slow
@pytest.mark.parametrize('bits', [1, 3])
def test_nearly_unbiased(bits):
  x, count = _vector(512, 2), 8000

  def estimate(key):
    return rotate.eden_decode(key, *rotate.eden_encode(key, x, bits, 512), bits, 512, 512)

  draws = np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(KEY, count)), np.float64)
  error = ((draws - np.asarray(x)) ** 2).sum(1).mean()
  bias = ((draws.mean(0) - np.asarray(x)) ** 2).sum()
  # The mean of unbiased draws is off by error / count; it may be off by 1% of x besides.
  assert bias < 1.3 * error / count + 0.01**2 * float((x**2).sum())


@pytest.mark.slow
def test_zeros_tiny_large_and_not_finite():
  for bits in (1, 4):
    codes, scale = rotate.eden_encode(KEY, jnp.zeros(100), bits, 64)
    assert not np.asarray(rotate.eden_decode(KEY, codes, scale, bits, 100, 64)).any()
    for factor in (1e-35, 1e30):
      x = jnp.asarray(np.random.default_rng(0).normal(size=128) * factor, jnp.float32)
      decoded = rotate.eden_decode(KEY, *rotate.eden_encode(KEY, x, bits, 64), bits, 128, 64)
      assert _error(np.asarray(decoded, np.float64) / factor, np.asarray(x) / factor) < 0.9
    for bad in (np.nan, np.inf):
      # Value 3 is in the second of the two blocks, which take turns.
      x = jnp.ones(128).at[3].set(bad)
      for encode, decode in (
        (lambda x, b=bits: rotate.eden_encode(KEY, x, b, 64), None),
        (lambda x: rotate.drive_encode(KEY, x, 64), rotate.drive_decode),
      ):
        codes, scale = encode(x)
        if decode is None:
          out = rotate.eden_decode(KEY, codes, scale, bits, 128, 64)
        else:
          out = decode(KEY, codes, scale, 128, 64)
        assert np.isnan(out[1::2]).all() and np.isfinite(out[::2]).all()


@pytest.mark.slow
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_what_is_not_finite_spoils_a_large_block(bad):
  # Value 3 is in the second of the two blocks, which take turns.
  x, block = jnp.ones(8192).at[3].set(bad), 4096
  coded = rotate.eden_encode(KEY, x, 2, block)
  signs = rotate.drive_encode(KEY, x, block)
  for out in (
    rotate.eden_decode(KEY, *coded, 2, 8192, block), rotate.drive_decode(KEY, *signs, 8192, block)
  ):  # fmt: skip
    assert np.isnan(out[1::2]).all() and np.isfinite(out[::2]).all()


@pytest.mark.slow
def test_vmap_equals_loop_bfloat16_and_one_compilation():
  stack = jnp.stack([_vector(1000, i) for i in range(3)]).astype(jnp.bfloat16)
  keys = jax.random.split(KEY, 3)
  encode = lambda key, x: rotate.eden_encode(key, x, 2, 128)
  codes, scale = jax.vmap(encode)(keys, stack)
  jitted = jax.jit(encode)
  for i, (key, x) in enumerate(zip(keys, stack, strict=True)):
    one = jitted(key, x)
    # The sums of a rotation may differ in their last bits, and a value at an edge with them.
    assert (np.asarray(codes[i]) != np.asarray(one[0])).sum() <= 1
    np.testing.assert_allclose(scale[i], one[1], rtol=1e-3)
  assert jitted._cache_size() == 1


def test_bad_arguments():
  with pytest.raises(ValueError, match='block must be a power of two'):
    rotate.rotate(KEY, jnp.ones(10), 12)
  with pytest.raises(ValueError, match='x must be one flat vector'):
    rotate.rotate(KEY, jnp.ones((2, 5)), 8)
  with pytest.raises(ValueError, match='bits must be'):
    rotate.eden_encode(KEY, jnp.ones(10), 5)
  with pytest.raises(ValueError, match=r'y must be \[16\]'):
    rotate.unrotate(KEY, jnp.ones(10), 10, 16)
  with pytest.raises(ValueError, match=r'codes must be \[16\]'):
    rotate.eden_decode(KEY, jnp.ones(8, jnp.uint8), jnp.ones(1), 2, 10, 16)
