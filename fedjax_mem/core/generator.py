"""The generator of all draws: Threefry-2x32 with 20 rounds, the words of `jax.random`'s.

JAX's own, written for any processor, compiles on a CPU to a loop of its own for every key that is
derived, and goes through memory twice in every eight rounds. Here the rounds stay in registers: a
key compiles in half of the time, and a million words are drawn in a fifth of it. Each word is that
of JAX's generator with `jax_threefry_partitionable`, whatever that flag is.

For simulation, not for secrets.

Reference: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3", section 4.2.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import define_prng_impl

from fedjax_mem.core.tracing import once

# Distances of the rotations, in bits: of four rounds, and of the four after those, in turn.
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
# A constant of the key schedule: the third word of a key of zeros is then not zero.
_PARITY = 0x1BD11BDA


@once()
def block(key: tuple[jax.Array, jax.Array], low: jax.Array, high: jax.Array) -> list[jax.Array]:
  """Returns the two words of each counter, uint32.

  The published test vector for a key and a counter of zeros:

  >>> zero = jnp.zeros(1, jnp.uint32)
  >>> [hex(word[0]) for word in block((zero[0], zero[0]), zero, zero)]
  ['0x6b200159', '0x99ba4efe']

  Args:
    key: two uint32 scalars.
    low: uint32 of any shape, the first words of the counters.
    high: uint32 of that shape, the second words.
  """
  words = (*key, key[0] ^ key[1] ^ jnp.uint32(_PARITY))
  schedule = [jnp.broadcast_to(word, low.shape) for word in words]
  x, y = lax.add(low, schedule[0]), lax.add(high, schedule[1])
  for i in range(5):
    for distance in _ROTATIONS[i % 2]:
      x = lax.add(x, y)
      left = lax.shift_left(y, np.uint32(distance))
      right = lax.shift_right_logical(y, np.uint32(32 - distance))
      y = lax.bitwise_xor(lax.bitwise_or(left, right), x)
    # After every four rounds the next two of the three key words, and the number of the group.
    x = lax.add(x, schedule[(i + 1) % 3])
    y = lax.add(lax.add(y, schedule[(i + 2) % 3]), np.uint32(i + 1))
  return [x, y]


@once()
def seed_words(seed: jax.Array) -> jax.Array:
  """Returns the words, uint32 [2], of the root key of a seed."""
  high = seed >> 32 if seed.dtype.itemsize > 4 else jnp.zeros_like(seed)
  return jnp.stack([high.astype(jnp.uint32), seed.astype(jnp.uint32)])


@once()  # a single program where a key is derived outside of one
def _derived(key: jax.Array, number: jax.Array) -> jax.Array:
  """Returns the keys, uint32 [..., 2], of these numbers [...]."""
  words = jnp.stack(block((key[0], key[1]), jnp.zeros_like(number), number), -1)
  # Barred: else the compiler computes the key anew for every single value that is drawn from it.
  barred: jax.Array = jax.lax.optimization_barrier(words)
  return barred


def _fold_in(key: jax.Array, number: Any) -> jax.Array:
  return _derived(key, jnp.asarray(number, jnp.uint32))


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return _derived(key, _positions(shape))


@once(1, 2)
def _bits(key: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
  kind = jnp.dtype(f'uint{width}')
  if math.prod(shape) >= 1 << 32:  # the counters need their second word
    with jax.threefry_partitionable(True):
      return jax.random.bits(jax.random.wrap_key_data(key, impl='threefry2x32'), shape, kind)
  number = _positions(shape)
  first, second = block((key[0], key[1]), jnp.zeros_like(number), number)
  wide = (first.astype(kind) << 32) | second.astype(kind) if width == 64 else first ^ second
  return jnp.asarray(wide, kind)


def _positions(shape: tuple[int, ...]) -> jax.Array:
  """Returns 0, 1, … in row-major order, uint32 of this shape."""
  number = jnp.zeros(shape, jnp.uint32)
  for axis in range(len(shape)):
    along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    number = number + along * jnp.uint32(math.prod(shape[axis + 1 :]))
  return number


GENERATOR = define_prng_impl(
  key_shape=(2,),
  seed=seed_words,
  split=_split,
  random_bits=_bits,
  fold_in=_fold_in,
  name='threefry_in_registers',
  tag='fry',
)
