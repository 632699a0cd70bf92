"""Codes of 1 to 8 bits, packed into bytes and back, bit for bit.

A code of b bits is cut into parts of 4, 2 and 1 bits (7 = 4 + 2 + 1, the lowest bits first), and
each part is packed on its own, one part after another. n = 8 / w parts of w bits fit a byte, so a
vector [D] becomes m = ceil(D / n) bytes. Byte j holds the parts of the codes j, m + j, 2 m + j, …,
the first in its lowest bits. The last byte positions without a code are zero.

Worked example: five codes of 2 bits. Four fit a byte, so m = 2. Byte 0 holds the first, third and
fifth code, 1 + (3 << 2) + (1 << 4) = 29; byte 1 holds the others, 2 + (0 << 2) = 2.

>>> packed = pack(jnp.array([1, 2, 3, 0, 1], jnp.uint8), 2)
>>> packed.tolist(), unpack(packed, 2, 5).tolist()
([29, 2], [1, 2, 3, 0, 1])
"""

import functools

import jax
import jax.numpy as jnp

from fedjax_mem.core import validate


def _parts(bits: int) -> list[tuple[int, int]]:
  """Returns (first bit, width) of the parts that codes of so many bits are cut into.

  >>> _parts(7), _parts(8)
  ([(0, 4), (4, 2), (6, 1)], [(0, 8)])
  """
  # The widths are the powers of two that sum to the bits. All of them divide 8, so that no part
  # spans two bytes, and whole bytes are shifted and masked at once.
  parts, start = [], 0
  for width in (8, 4, 2, 1):
    if bits & width:
      parts.append((start, width))
      start += width
  return parts


def nbytes(size: int, bits: int) -> int:
  """Returns the bytes that `size` codes of `bits` bits take: at most two more than the bits do.

  Each part is rounded up to whole bytes, and there are at most three. Five codes of 7 bits: 3 bytes
  for the parts of 4 bits, 2 for those of 2, and 1 for those of 1.

  >>> nbytes(5, 7)
  6

  Args:
    size: D, number of codes.
    bits: of a code, in [1, 8].

  Raises:
    ValueError: size < 0, or bits not in [1, 8].
  """
  validate.integer(size=size, at_least=0)
  validate.integer(bits=bits, at_most=8)
  return sum(-(-size * width // 8) for _, width in _parts(bits))


@functools.partial(jax.jit, static_argnames=('bits',))
def pack(codes: jax.Array, bits: int) -> jax.Array:
  """Returns the codes as bytes, uint8 [nbytes(D, bits)].

  Args:
    codes: [D] uint8, each below 2 ** bits (higher bits are dropped).
    bits: of a code, in [1, 8].

  Raises:
    ValueError: bits is out of range, or codes is not a vector of uint8.
  """
  validate.integer(bits=bits, at_most=8)
  _bytes_only(codes=codes)
  packed = []
  for start, width in _parts(bits):
    count = 8 // width
    # Row i of [n, m] holds the parts that go to position i of each byte. In the example, of the
    # rows (1, 2), (3, 0), (1, 0), (0, 0), the first column is byte 0. Neighbours are therefore in
    # different bytes: a byte of neighbours would need strided reads, a row is one contiguous run.
    part = (codes >> jnp.uint8(start)) & jnp.uint8(2**width - 1)
    rows = jnp.pad(part, (0, -codes.size % count)).reshape(count, -1)
    byte = rows[0]
    # "Or", not a sum: `jnp.sum` would add in a wider integer type.
    for i in range(1, count):
      byte = byte | (rows[i] << jnp.uint8(i * width))
    packed.append(byte)
  return jnp.concatenate(packed)


@functools.partial(jax.jit, static_argnames=('bits', 'size'))
def unpack(packed: jax.Array, bits: int, size: int) -> jax.Array:
  """Returns the codes [size] uint8 that were packed.

  Args:
    packed: [nbytes(size, bits)] uint8.
    bits: of a code, in [1, 8].
    size: D, number of codes.

  Raises:
    ValueError: bits is out of range, or the number of bytes is not what `size` codes take.
  """
  _bytes_only(packed=packed)
  if packed.size != nbytes(size, bits):
    raise ValueError(
      f'packed must be {nbytes(size, bits)} bytes for {size} codes of {bits} bits, '
      f'got {packed.size!r}.'
    )
  parts, begin = [], 0
  for start, width in _parts(bits):
    # The rows again: position i of every byte, shifted down. Row by row they are the codes in
    # order, then the padding, which is cut off.
    end = begin + -(-size * width // 8)
    shifts = jnp.arange(0, 8, width, dtype=jnp.uint8)[:, None]
    rows = (packed[begin:end][None] >> shifts) & jnp.uint8(2**width - 1)
    parts.append(rows.reshape(-1)[:size] << jnp.uint8(start))
    begin = end
  codes: jax.Array = functools.reduce(jnp.bitwise_or, parts)
  return codes


def _bytes_only(**named: jax.Array) -> None:
  """Raises unless the one array given is a vector of uint8."""
  ((name, x),) = named.items()
  if x.ndim != 1 or x.dtype != jnp.uint8:
    raise ValueError(f'{name} must be a vector of uint8, got {x.dtype}{list(x.shape)}.')
