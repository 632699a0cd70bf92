"""Packed bits against a loop over the layout that the module states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.codes import packing

SIZES = (0, 1, 2, 7, 8, 9, 63, 64, 65, 1001)


def _codes(size, bits):
  return np.random.default_rng(size).integers(0, 2**bits, size).astype(np.uint8)


def _twin(codes, bits):
  out, start = [], 0
  for width in (8, 4, 2, 1):
    if not bits & width:
      continue
    count = 8 // width
    length = -(-len(codes) // count)
    part = np.zeros(length, np.uint8)
    for i, code in enumerate(codes):
      row, column = divmod(i, length)
      part[column] |= ((int(code) >> start) & (2**width - 1)) << (row * width)
    out.append(part)
    start += width
  return np.concatenate(out)


@pytest.mark.first(4)
@pytest.mark.parametrize('bits', range(1, 9))
@pytest.mark.parametrize('size', SIZES)
def test_twin_and_back(bits, size):
  codes = _codes(size, bits)
  packed = packing.pack(jnp.asarray(codes), bits)
  assert packed.dtype == jnp.uint8 and packed.size == packing.nbytes(size, bits)
  np.testing.assert_array_equal(packed, _twin(codes, bits))
  back = packing.unpack(packed, bits, size)
  assert back.dtype == jnp.uint8
  np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize('bits', range(1, 9))
def test_no_more_than_two_bytes_are_lost(bits):
  for size in range(100):
    tight = -(-size * bits // 8)
    assert tight <= packing.nbytes(size, bits) <= tight + 2


def test_higher_bits_are_dropped():
  np.testing.assert_array_equal(
    packing.unpack(packing.pack(jnp.array([0xFF, 0xF2], jnp.uint8), 3), 3, 2), [7, 2]
  )


def test_vmap_equals_loop_and_one_compilation():
  stack = jnp.stack([jnp.asarray(_codes(77, 5))[::step] for step in (1, -1)])
  packed = jax.vmap(lambda c: packing.pack(c, 5))(stack)
  back = jax.vmap(lambda p: packing.unpack(p, 5, 77))(packed)
  pack = jax.jit(lambda codes: packing.pack(codes, 5))
  for i, codes in enumerate(stack):
    np.testing.assert_array_equal(packed[i], pack(codes))
    np.testing.assert_array_equal(back[i], codes)
  assert pack._cache_size() == 1


@pytest.mark.parametrize('bits', [0, 9, 1.0])
def test_bad_bits(bits):
  with pytest.raises(ValueError, match='bits must be'):
    packing.pack(jnp.zeros(3, jnp.uint8), bits)


def test_bad_arrays():
  with pytest.raises(ValueError, match='codes must be a vector of uint8'):
    packing.pack(jnp.zeros(3, jnp.int32), 2)
  with pytest.raises(ValueError, match='packed must be 3 bytes'):
    packing.unpack(jnp.zeros(2, jnp.uint8), 8, 3)
