"""Integers modulo 2 ** b, in int32: stochastic rounding, wrapping, and the way back.

A sum in int32 wraps modulo 2 ** 32, and so modulo any smaller power of two: nothing has to be
reduced while values are added, only before they are sent and after they are summed.

Worked example with b = 4, the numbers -8 … 7. Three clients hold 7, -3 and -2. On the wire they are
numbers in 0 … 15; the sum wraps around, and centring restores it:

>>> sent = wrapped(jnp.array([7, -3, -2]), 4)
>>> sent.tolist(), int(sent.sum()), int(wrapped(sent.sum(), 4))
([7, 13, 14], 34, 2)
>>> int(centered(sent.sum(), 4))
2

A sum beyond -8 … 7 is restored wrongly, and the result does not show it: 7 + 5 gives -4.

>>> int(centered(jnp.int32(7 + 5), 4))
-4
"""

from typing import Any

import jax
import jax.numpy as jnp

# Bits of the largest modulus: int32 wraps modulo 2 ** 32 without any operation.
LARGEST = 32


def stochastic_round(key: jax.Array, x: jax.Array) -> jax.Array:
  """Returns x rounded at random to a whole number next to it, int32, with the expectation x.

  The probability of rounding up is x - floor(x), up to a multiple of 2 ** -24; a whole number stays
  what it is.

  Args:
    key: used for nothing else.
    x: float32 of any shape, of magnitude up to 2 ** 23.
  """
  # 24 bits: as many integers as float32 holds exactly.
  drawn = (jax.random.bits(key, x.shape, jnp.uint32) >> 8).astype(jnp.float32)
  whole = jnp.floor(x)
  # x = 2.25 becomes 3 where the uniform number is below 0.25. The uniform numbers
  # (r + 1/2) / 2**24 are never 0, so that a whole number is never rounded up.
  up: jax.Array = x - whole > (drawn + jnp.float32(0.5)) * jnp.float32(2**-24)
  return whole.astype(jnp.int32) + up.astype(jnp.int32)


def wrapped(x: jax.Array, bits: int) -> jax.Array:
  """Returns x modulo 2 ** bits in [0, 2 ** bits), int32; with 32 bits, x itself.

  Args:
    x: int32 of any shape.
    bits: in [1, 32].
  """
  # The lowest bits of two's complement are the residue, of negative numbers too: -3 & 15 is 13.
  return x if bits == LARGEST else x & jnp.int32(2**bits - 1)


def centered(x: jax.Array, bits: int) -> jax.Array:
  """Returns the number in [-2 ** (bits - 1), 2 ** (bits - 1)) that is x modulo 2 ** bits, int32.

  Args:
    x: int32 of any shape.
    bits: in [1, 32].
  """
  if bits == LARGEST:
    return x
  half: jax.Array = jnp.int32(2 ** (bits - 1))
  # Shifted, wrapped, shifted back. For 4 bits and x = 13: (13 + 8) & 15 = 5, and 5 - 8 = -3.
  return wrapped(x + half, bits) - half


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns int32 values of a shape, each of the 2 ** 32 values equally likely.

  Added to any other values modulo 2 ** b, b <= 32, they give uniform ones: they hide those.

  Args:
    key: used for nothing else.
    shape: of the result.
  """
  # Bits as they are: `jax.random.randint` would reduce them to a range that is all of int32.
  return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint32), jnp.int32)


def filled(whole: Any, bits: int) -> jax.Array:
  """Returns the largest magnitude in a tree of centered sums over 2 ** (bits - 1), in [0, 1].

  Near 1, a sum may have left the range and wrapped around: that cannot be seen afterwards.

  >>> float(filled([jnp.array([3, -6])], 4))
  0.75

  Args:
    whole: a tree of int32 arrays.
    bits: of the modulus, in [1, 32].
  """
  largest: jax.Array = jnp.float32(0)
  for x in jax.tree.leaves(whole):
    if x.size:
      # As floats: the magnitude of the least int32 is not an int32.
      largest = jnp.maximum(largest, jnp.max(jnp.abs(x.astype(jnp.float32))))
  share: jax.Array = largest * jnp.float32(2.0 ** (1 - bits))
  return share
