"""k coordinates at random, from a key that server and clients share: no indices on the wire.

The coordinates come from a pseudo-random permutation of 0 … D - 1, a Feistel network in O(k), and
one uniform shift modulo D. The shift alone makes every coordinate equally likely to be among the k,
whatever the permutation: D / k times what was picked is an unbiased estimate of x, and its squared
error is (D / k - 1) ||x||² in expectation, as for subsets drawn uniformly. Pairs of coordinates are
as independent as the network mixes. Reference: Luby, Rackoff (1988) on Feistel networks; Wangni et
al. (2017) and Stich et al. (2018) on sparsification.
"""

import functools
import math

import jax
import jax.numpy as jnp

from fedjax_mem.core import validate

ROUNDS = 6


def _mix(x: jax.Array) -> jax.Array:
  """Returns well mixed 32 bits of each uint32 (the finaliser of MurmurHash3)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _network(x: jax.Array, seeds: jax.Array, side: int) -> jax.Array:
  """Returns a permutation of 0 … side² - 1 at x, uint32."""
  wide = jnp.uint32(side)
  left, right = x // wide, x % wide
  for i in range(ROUNDS):
    # The upper 16 bits scaled to 0 … side - 1; side is at most 2**16.
    drawn = ((_mix(right ^ seeds[i]) >> 16) * wide) >> 16
    total = left + drawn
    left, right = right, jnp.where(total >= wide, total - wide, total)
  return left * wide + right


@functools.partial(jax.jit, static_argnames=('size', 'k'))
def indices(key: jax.Array, size: int, k: int) -> jax.Array:
  """Returns k distinct coordinates out of 0 … size - 1, int32 [k], in random order; O(k).

  Args:
    key: the same for everyone who has to know the coordinates.
    size: D, below 2**31.
    k: in [1, D].

  Raises:
    ValueError: size or k is out of range.
  """
  validate.integer(size=size, at_most=2**31 - 1)
  validate.integer(k=k, at_most=size)
  shift_key, seed_key = jax.random.split(key)
  seeds = jax.random.bits(seed_key, (ROUNDS,), jnp.uint32)
  side, count = math.isqrt(size - 1) + 1, jnp.uint32(size)

  def walk(x: jax.Array) -> jax.Array:
    # The few points that leave 0 … size - 1 follow their cycle until they are back.
    return jnp.where(x >= count, _network(x, seeds, side), x)

  start = _network(jnp.arange(k, dtype=jnp.uint32), seeds, side)
  inside = jax.lax.while_loop(lambda x: (x >= count).any(), walk, start)
  shift = jax.random.randint(shift_key, (), 0, size, jnp.int32).astype(jnp.uint32)
  moved = inside + shift
  return jnp.where(moved >= count, moved - count, moved).astype(jnp.int32)


def pick(x: jax.Array, idx: jax.Array) -> jax.Array:
  """Returns the values [k] of x [D] at the coordinates `idx` [k]."""
  return x.at[idx].get(mode='clip', unique_indices=True)


@functools.partial(jax.jit, static_argnames=('size',))
def spread(values: jax.Array, idx: jax.Array, size: int) -> jax.Array:
  """Returns [size], `values` [k] at their coordinates `idx` [k] and zero elsewhere."""
  empty = jnp.zeros(size, values.dtype)
  return empty.at[idx].set(values, mode='drop', unique_indices=True)
