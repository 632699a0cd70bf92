"""Random words in bulk: Threefry-2x32 with 20 rounds, of a counter.

It is the generator behind `jax.random`, which makes a block of two words for every word that it
gives. Here both words are given. For simulation, not for secrets.

Reference: Salmon et al. (2011), "Parallel random numbers: as easy as 1, 2, 3", section 4.2.
"""

import functools

import jax
import jax.numpy as jnp

from fedjax_mem.core.generator import block
from fedjax_mem.kernels.loops import parts


@functools.partial(jax.jit, static_argnames=('count',))
def words(key: jax.Array, count: int) -> list[jax.Array]:
  """Returns two vectors of `count` random words, uint32.

  Args:
    key: a typed PRNG key of any kind, used for nothing else.
    count: blocks, at most 2 ** 31 - 1.
  """
  seed = jax.random.bits(key, (2,), jnp.uint32)

  def some(start: jax.Array, length: int) -> list[jax.Array]:
    low = (start + jax.lax.iota(jnp.int32, length)).astype(jnp.uint32)
    return block((seed[0], seed[1]), low, jnp.zeros_like(low))

  drawn: list[jax.Array] = parts.stream(some, count, part=parts.SMALL)
  return drawn
