"""Uniform quantisation against NumPy, code for code; unbiasedness and error bounds."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.codes import quantize
from fedjax_mem.kernels.loops import parts
from fedjax_mem.kernels.random import threefry

KEY = jax.random.key(3)


def _vector(size=1001, scale=1.0, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(size) * scale, jnp.float32).astype(dtype)


def _random(key, size, block):
  """Returns the 23 bits of each value: a byte of its own, and the shared sequence below it."""
  per_row = -(-(block or size) // 8) if block else -(-size // 8)
  rows = -(-size // block) if block else 1
  words = threefry.words(jax.random.fold_in(key, 0), rows * per_row)
  shift = jax.random.bits(jax.random.fold_in(key, 1), (), jnp.uint32)
  octets = np.stack(words, 1).view(np.uint8).reshape(-1, 8)
  if block:
    rows_of = octets.reshape(rows, per_row, 8).transpose(0, 2, 1).reshape(rows, -1)
    own = rows_of[:, :block].ravel()[:size]
  else:
    count, length = parts.split(size, 8, parts.SMALL)
    edges = sorted({0, *range(0, count * length + 1, length or 1), size // 8 * 8, size})
    edges = edges if count else [0, size]
    own = [octets[a // 8 : -(-b // 8)].T.ravel()[: b - a] for a, b in itertools.pairwise(edges)]
    own = np.concatenate(own)
  finer = (np.arange(size, dtype=np.uint64) * 0x9E3779B9 + int(shift)) % 2**32
  return own.astype(np.uint64) << 15 | finer >> 17


def _twin(x, bits, block, draws=None):
  """Returns (codes, scales) with scales = largest magnitudes."""
  x = np.asarray(x.astype(jnp.float32))
  block = block or x.size
  scales = np.array([np.abs(x[i : i + block]).max() for i in range(0, x.size, block)])
  safe = np.where(scales > 0, scales, np.float32(1)).astype(np.float32)
  ratio = x * np.repeat(np.float32(1) / safe, block)[: x.size]
  levels = 2 if bits == 1 else 2**bits - 1
  half = np.float32((levels - 1) / 2)
  steps = (ratio + np.float32(bits == 1)) * half
  if draws is None:
    whole = np.round(steps)
  else:
    whole = np.floor(steps)
    whole = whole + (steps - whole > (draws + np.float64(0.5)) / 2**23)
  codes = whole if bits == 1 else whole + half
  return codes.astype(np.uint8), scales


@pytest.mark.slow
@pytest.mark.parametrize(
  'block, dtype', [(None, jnp.float32), (64, jnp.bfloat16), (77, jnp.float32)]
)
def test_numpy_twin(block, dtype):
  x = _vector(dtype=dtype)
  for bits in (1, 3, 8):
    codes, scales = quantize.stochastic(KEY, x, bits, block=block)
    expected = _twin(x, bits, block, _random(KEY, x.size, block))
    assert codes.dtype == jnp.uint8 and scales.dtype == jnp.float32
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(scales, expected[1])
    codes, _ = quantize.deterministic(x, bits, block=block)
    np.testing.assert_array_equal(codes, _twin(x, bits, block)[0])


@pytest.mark.slow
@pytest.mark.parametrize('block', [None, 1000])
def test_several_parts(block):
  x = _vector(2 * parts.LARGE + 11)
  codes, scales = quantize.stochastic(KEY, x, 4, block=block)
  expected = _twin(x, 4, block, _random(KEY, x.size, block))
  np.testing.assert_array_equal(codes, expected[0])
  np.testing.assert_array_equal(scales, expected[1])
  decoded = quantize.decode(codes, scales, 4, block)
  step = np.repeat(expected[1] / 7, block or x.size)[: x.size]
  assert (np.abs(decoded - x) <= step * (1 + 1e-6)).all()


@pytest.mark.slow
@pytest.mark.parametrize('scale', ['max', 'l2'])
@pytest.mark.parametrize('block', [None, 100])
def test_error_bounds(block, scale):
  x = _vector()
  rows = [np.asarray(x)[i : i + (block or 1001)] for i in range(0, 1001, block or 1001)]
  for bits in (1, 3, 8):
    step = 2 / (quantize.levels(bits) - 1)
    for stochastic in (True, False):
      if stochastic:
        codes, scales = quantize.stochastic(KEY, x, bits, scale, block)
      else:
        codes, scales = quantize.deterministic(x, bits, scale, block)
      assert int(codes.max()) < quantize.levels(bits)
      order = None if scale == 'l2' else np.inf
      np.testing.assert_allclose(scales, [np.linalg.norm(r, order) for r in rows], rtol=1e-6)
      each = np.repeat(scales, block or 1001)[:1001] * step
      error = np.abs(np.asarray(quantize.decode(codes, scales, bits, block)) - np.asarray(x))
      assert (error <= each * (1 if stochastic else 0.5) * (1 + 1e-5)).all()


@pytest.mark.first(1)
@pytest.mark.parametrize('bits', [1, 2, 4, 8])
def test_unbiased(bits):
  x = _vector(64, seed=5)
  count = 20_000

  def estimate(key):
    codes, scales = quantize.stochastic(key, x, bits)
    return quantize.decode(codes, scales, bits)

  draws = jax.jit(jax.vmap(estimate))(jax.random.split(KEY, count))
  draws = np.asarray(draws, np.float64)
  spread = draws.std(0) + 1e-7
  z = (draws.mean(0) - np.asarray(x, np.float64)) / (spread / math.sqrt(count))
  still = spread < 2e-7  # The largest: always on a level.
  assert np.abs(z[~still]).max() < 4.5 and still.sum() >= 1
  step = 2 * np.abs(x).max() / (quantize.levels(bits) - 1)
  assert ((draws - np.asarray(x)) ** 2).mean() <= step**2 / 4


@pytest.mark.slow
def test_equal_values_are_rounded_as_if_each_by_itself():
  """The finer bits, which are shared, neither bind the values together nor push them apart."""
  x = jnp.full(1000, 0.3).at[0].set(1.0)
  keys = jax.random.split(KEY, 3000)
  codes = jax.jit(jax.vmap(lambda key: quantize.stochastic(key, x, 2)[0]))(keys)
  ups = np.asarray(codes[:, 1:] - 1, np.int64).sum(1)
  chance = float(jnp.float32(0.3))
  assert abs(ups.mean() - 999 * chance) < 4.5 * ups.std() / math.sqrt(3000)
  ratio = ups.var() / (999 * chance * (1 - chance))
  assert abs(ratio - 1) < 4.5 * math.sqrt(2 / 3000)


@pytest.mark.slow
def test_values_on_a_level_stay_there():
  for bits in range(2, 9):
    half = (quantize.levels(bits) - 1) // 2
    x = jnp.arange(-half, half + 1, dtype=jnp.float32)
    codes, scales = quantize.stochastic(KEY, x, bits)
    np.testing.assert_array_equal(codes, np.arange(2 * half + 1))
    np.testing.assert_allclose(quantize.decode(codes, scales, bits), x, rtol=1e-6)


@pytest.mark.slow
def test_zeros_and_subnormal_numbers():
  tiny = jnp.asarray(np.array([1, 0x80000005, 7], np.uint32).view(np.float32))
  for x in (jnp.zeros(3), tiny, jnp.array([1e-37, -1e-37, 0])):
    for bits in (1, 3, 8):
      for block in (None, 2):
        codes, scales = quantize.stochastic(KEY, x, bits, block=block)
        decoded = quantize.decode(codes, scales, bits, block)
        assert (np.abs(np.asarray(decoded)) <= 1.0001e-37).all()
        if not np.asarray(x).any():
          assert not np.asarray(decoded).any()


@pytest.mark.slow
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_block_only(bad):
  x = _vector(30).at[4].set(bad)
  for scale in ('max', 'l2', jnp.float32(2.0)):
    codes, scales = quantize.stochastic(KEY, x, 4, scale, 10)
    decoded = np.asarray(quantize.decode(codes, scales, 4, 10))
    assert np.isnan(decoded[:10]).all() and np.isfinite(decoded[10:]).all()


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('scale', ['max', 'l2', 2.0])
def test_what_is_not_finite_spoils_a_large_block(scale, bad):
  x = _vector(12000).at[7].set(bad)
  scale = scale if isinstance(scale, str) else jnp.float32(scale)
  codes, scales = quantize.stochastic(KEY, x, 4, scale, 6000)
  decoded = np.asarray(quantize.decode(codes, scales, 4, 6000))
  assert np.isnan(decoded[:6000]).all() and np.isfinite(decoded[6000:]).all()


def test_large_values_do_not_overflow():
  x = jnp.array([3e38, -3e38, 1e38], jnp.float32)
  decoded = quantize.decode(*quantize.deterministic(x, 8), 8)
  np.testing.assert_allclose(decoded, x, atol=3e38 / 254 * 1.001)


def test_a_given_scale_clips_and_codes_add():
  x, y = jnp.array([5.0, -5.0, 1.0]), jnp.array([2.0, 0.0, -1.0])
  total = jnp.zeros(3)
  for v in (x, y):
    codes, scales = quantize.deterministic(v, 3, jnp.float32(3.0))
    np.testing.assert_array_equal(scales, [3.0])
    total += codes.astype(jnp.float32) - 3
  np.testing.assert_array_equal(total, [3 + 2, -3, 0])


def test_sign():
  for dtype in (jnp.float32, jnp.bfloat16):
    x = _vector(77, dtype=dtype)
    codes, scale = quantize.sign(x)
    flat = np.asarray(x.astype(jnp.float32), np.float64)
    np.testing.assert_allclose(scale, [np.abs(flat).mean()], rtol=1e-6)
    decoded = np.asarray(quantize.decode(codes, scale, 1), np.float64)
    np.testing.assert_array_equal(decoded > 0, flat >= 0)
    np.testing.assert_array_equal(codes, flat >= 0)
    error = ((decoded - flat) ** 2).sum()
    np.testing.assert_allclose(error, (flat**2).sum() - 77 * float(scale[0]) ** 2, rtol=1e-5)


@pytest.mark.slow
def test_ternary():
  x = _vector(1000)
  codes = quantize.ternary(KEY, x)[0]
  assert set(np.unique(codes)) == {0, 1, 2}
  np.testing.assert_array_equal(codes, quantize.stochastic(KEY, x, 2)[0])


@pytest.mark.slow
@pytest.mark.parametrize('factor', [1e-30, 1.0, 1e30])
def test_ternary_clips_at_standard_deviations_about_the_mean(factor):
  """Of (1, 2, 3) the largest becomes 2.5 * sqrt(2 / 3) = 2.041; a block of one value stays."""
  codes, scales = quantize.ternary(KEY, factor * jnp.array([1.0, 2.0, 3.0]), clip=2.5)
  np.testing.assert_allclose(quantize.decode(codes, scales, 2).max() / factor, 2.0412, rtol=1e-4)
  x = factor * (3 + _vector(1001))
  scales = quantize.ternary(KEY, x, clip=2.5, block=250)[1]
  rows = [np.asarray(x[i : i + 250], np.float64) / factor for i in range(0, 1001, 250)]
  limit = [min(2.5 * r.std(), np.abs(r).max()) if len(r) > 1 else abs(r[0]) for r in rows]
  np.testing.assert_allclose(scales / factor, limit, rtol=1e-5)
  # The last block of 400 has 201 values: the zeros that fill it up do not count.
  scales = quantize.ternary(KEY, x, clip=2.5, block=400)[1]
  rest = np.asarray(x[800:], np.float64) / factor
  np.testing.assert_allclose(scales[2] / factor, 2.5 * rest.std(), rtol=1e-5)


@pytest.mark.slow
def test_vmap_equals_loop_jit_equals_eager_and_one_compilation():
  stack = jnp.stack([_vector(500, seed=i) for i in range(3)])
  keys = jax.random.split(KEY, 3)
  for bits, block in ((8, None), (3, 64)):
    encode = lambda key, x, bits=bits, block=block: quantize.stochastic(key, x, bits, block=block)
    codes, scales = jax.vmap(encode)(keys, stack)
    jitted = jax.jit(encode)
    for i, (key, x) in enumerate(zip(keys, stack, strict=True)):
      for one in (encode(key, x), jitted(key, x)):
        np.testing.assert_array_equal(codes[i], one[0])
        np.testing.assert_array_equal(scales[i], one[1])
    with jax.disable_jit():
      np.testing.assert_array_equal(encode(keys[0], stack[0])[0], codes[0])
    assert jitted._cache_size() == 1


def test_bad_arguments():
  x = _vector(10)
  for bits in (0, 9):
    with pytest.raises(ValueError, match='bits must be'):
      quantize.stochastic(KEY, x, bits)
  with pytest.raises(ValueError, match='block must be'):
    quantize.deterministic(x, 2, block=0)
  with pytest.raises(ValueError, match=r"scale must be one of .* Did you mean 'max'"):
    quantize.deterministic(x, 2, 'mux')
  with pytest.raises(ValueError, match='x must be one flat vector'):
    quantize.deterministic(x[None], 2)
  with pytest.raises(ValueError, match=r'scale must be \[3\]'):
    quantize.decode(jnp.zeros(10, jnp.uint8), jnp.ones(1), 2, 4)
