"""Random sparsification: k coordinates from a key that server and clients share, none are sent.

The coordinates come from a pseudo-random permutation of 0 … D - 1, a Feistel network in O(k), and
one uniform shift modulo D. The shift alone makes every coordinate equally likely to be among the k,
whatever the permutation: D / k times what was picked is an unbiased estimate of x, and its squared
error is (D / k - 1) ||x||² in expectation, as for subsets drawn uniformly. Pairs of coordinates are
as independent as the network mixes.

Worked example, D = 7: the network permutes 0 … 8, of side 3. Points that land on 7 or 8 are
permuted again until they land below 7 (cycle walking), and the shift is added modulo 7.

>>> sorted(indices(jax.random.key(0), 7, 7).tolist())
[0, 1, 2, 3, 4, 5, 6]
>>> idx = jnp.array([4, 0])
>>> spread(pick(jnp.array([5.0, 6.0, 7.0, 8.0, 9.0]), idx), idx, 5).tolist()
[5.0, 0.0, 0.0, 0.0, 9.0]

Why not `jax.random.permutation`: it sorts all D coordinates to use k of them.

Reference: Luby, Rackoff (1988) on Feistel networks; Wangni et
al. (2017) and Stich et al. (2018) on sparsification.
"""

import functools
import math

import jax
import jax.numpy as jnp

from fedjax_mem.core import validate

# Rounds of the Feistel network. With random functions, 4 make a strong pseudo-random permutation
# (Luby, Rackoff 1988); `_mix` is not a random function.
ROUNDS = 6


def _mix(x: jax.Array) -> jax.Array:
  """Returns well mixed 32 bits of each uint32 (the finaliser of MurmurHash3)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def _network(x: jax.Array, seeds: jax.Array, side: int) -> jax.Array:
  """Returns a permutation of 0 … side² - 1 at x, uint32: a Feistel network modulo `side`.

  Args:
    x: uint32, below side².
    seeds: [ROUNDS] uint32.
    side: at most 2**16.
  """
  # A round maps (left, right) to (right, left + F(right)). It can be undone whatever F is, by
  # subtracting F(right): so the network is a permutation, without a table of it.
  wide = jnp.uint32(side)
  left, right = x // wide, x % wide
  for i in range(ROUNDS):
    # The upper 16 bits scaled to 0 … side - 1; side is at most 2**16.
    drawn = ((_mix(right ^ seeds[i]) >> 16) * wide) >> 16
    total = left + drawn
    left, right = right, jnp.where(total >= wide, total - wide, total)
  mixed: jax.Array = left * wide + right
  return mixed


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
  """Returns the values [k] of x at some coordinates.

  Args:
    x: [D].
    idx: [k] int32, distinct, from `indices`.
  """
  picked: jax.Array = x.at[idx].get(mode='clip', unique_indices=True)
  return picked


@functools.partial(jax.jit, static_argnames=('size',))
def spread(values: jax.Array, idx: jax.Array, size: int) -> jax.Array:
  """Returns the vector [size] with values at their coordinates and zero elsewhere.

  Args:
    values: [k].
    idx: [k] int32, distinct, from `indices`.
    size: D.
  """
  empty = jnp.zeros(size, values.dtype)
  return empty.at[idx].set(values, mode='drop', unique_indices=True)
