"""Integers modulo 2 ** b, in int32: stochastic rounding, wrapping, and the way back.

A sum in int32 wraps modulo 2 ** 32, and so modulo any smaller power of two: nothing has to be
reduced on the way, only before it is sent and after it is summed.
"""

from typing import Any

import jax
import jax.numpy as jnp

LARGEST = 32  # bits


def stochastic_round(key: jax.Array, x: jax.Array) -> jax.Array:
  """Returns x rounded to a whole number next to it, int32, whose expectation is x.

  The chance of rounding up is a multiple of 2 ** -24; a whole number stays where it is.

  Args:
    key: of this use alone.
    x: float32 of any shape, of magnitude up to 2 ** 23.
  """
  drawn = (jax.random.bits(key, x.shape, jnp.uint32) >> 8).astype(jnp.float32)
  whole = jnp.floor(x)
  # (r + 1/2) / 2**24 is never 0.
  up = x - whole > (drawn + jnp.float32(0.5)) * jnp.float32(2**-24)
  return whole.astype(jnp.int32) + up.astype(jnp.int32)


def wrapped(x: jax.Array, bits: int) -> jax.Array:
  """Returns x modulo 2 ** bits in [0, 2 ** bits), int32; of 32 bits, x itself."""
  return x if bits == LARGEST else x & jnp.int32(2**bits - 1)


def centered(x: jax.Array, bits: int) -> jax.Array:
  """Returns the number in [-2 ** (bits - 1), 2 ** (bits - 1)) that is x modulo 2 ** bits, int32."""
  if bits == LARGEST:
    return x
  half = jnp.int32(2 ** (bits - 1))
  return wrapped(x + half, bits) - half


def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Returns int32 values of that shape, each of them equally likely."""
  return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint32), jnp.int32)


def filled(whole: Any, bits: int) -> jax.Array:
  """Returns the largest magnitude in a tree of centered sums over 2 ** (bits - 1), in [0, 1].

  Near 1 a sum had no room, or nearly so, and has wrapped around: nobody can tell which.
  """
  largest = jnp.float32(0)
  for x in jax.tree.leaves(whole):
    if x.size:
      # As floats: the magnitude of the least int32 is not an int32.
      largest = jnp.maximum(largest, jnp.max(jnp.abs(x.astype(jnp.float32))))
  return largest * jnp.float32(2.0 ** (1 - bits))
