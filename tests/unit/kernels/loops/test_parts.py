"""Parts of a vector: nothing lost, nothing twice, blocks kept whole."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.loops import parts


@pytest.mark.first(4)
@pytest.mark.parametrize('size', [1, 5, 8, 17, 64, 100, 131])
@pytest.mark.parametrize('block', [1, 8])
def test_stream_and_split(size, block):
  x = jnp.arange(1, size + 1, dtype=jnp.int32)
  lengths = []

  def f(start, length):
    lengths.append(length)
    piece = parts.take(x, start, length)
    blocks = jnp.pad(piece, (0, -length % block)).reshape(-1, block)
    return 2 * piece, blocks.sum(1, dtype=jnp.int32)

  doubled, sums = parts.stream(f, size, block, part=32)
  np.testing.assert_array_equal(doubled, 2 * np.arange(1, size + 1))
  padded = np.pad(np.arange(1, size + 1), (0, -size % block))
  np.testing.assert_array_equal(sums, padded.reshape(-1, block).sum(1))
  assert all(n % block == 0 or n == size % block or n == size for n in lengths)
  count, length = parts.split(size, block, 32)
  assert count * length <= size and length % block == 0 and length <= 64
  assert (count == 0 and size < 16) or (count >= 2 and size - count * length < length)


@pytest.mark.parametrize('size', [1, 10, 20, 25])
def test_fold(size):
  x = jnp.arange(size, dtype=jnp.int32)
  total = parts.fold(lambda total, part: total + part.sum(dtype=jnp.int32), jnp.int32(0), x, 10)
  assert int(total) == size * (size - 1) // 2


@pytest.mark.parametrize('size', [1, 10, 20, 25])
def test_replace(size):
  x = jnp.arange(1, size + 1, dtype=jnp.float32)
  new = parts.replace(lambda start, piece: piece * 2 + start.astype(jnp.float32), x, 10)
  starts = np.arange(size) // 10 * 10
  np.testing.assert_array_equal(new, 2 * np.arange(1, size + 1) + starts)


@pytest.mark.parametrize('size, expected', [(1, 0), (16, 0), (17, 1), (32, 2), (47, 2), (48, 3)])
def test_long_blocks_are_the_parts(size, expected):
  # Also where rounding the number of parts up would leave none of a whole block.
  assert parts.split(size, 16, 16) == ((expected, 16) if expected else (0, 0))
