"""Clipping of a whole update to an L2 ball: one global norm over all arrays of a pytree.

Edge cases:

- all zeros, or no leaves: the input, norm 0
- norm <= bound: the input, bit for bit
- values whose squares overflow or vanish in float32 (1e30, 1e-30): right, since the squares are
  taken after division by the largest magnitude
- finite values whose norm is beyond float32: clipped right, norm infinite
- an infinite or a NaN value: NaN, norm infinite or NaN; the engine drops such a client
- bound 0: zeros

Worked example: the norm of (3, 4) over two arrays is 5, and the bound 2.5 halves them.

>>> clipped, norm = clip_by_global_norm({'a': jnp.array([3.0]), 'b': jnp.array([4.0])}, 2.5)
>>> clipped['a'].tolist(), clipped['b'].tolist(), float(norm)
([1.5], [2.0], 5.0)

Reference: Pascanu, Mikolov, Bengio (2013), arXiv 1211.5063, Algorithm 1.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_mem.core import validate

Tree = Any


# A stated bound holds exactly if the radius is multiplied by one less this: it is more than the
# rounding error of float32 in the norm and in the product.
MARGIN = 2.0**-20


def scaled_norm(tree: Tree) -> tuple[jax.Array, jax.Array]:
  """Returns (s, norm of s * tree) for s a power of two near 1 / the largest magnitude.

  The norm itself may be beyond float32, that of s * tree is not.

  Args:
    tree: arrays of floats, of any shapes.
  """
  # Two passes, the largest magnitude and then the squares: values of 1e30 would overflow in one.
  leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(tree) if x.size]
  largest = jnp.float32(0)
  for x in leaves:
    largest = jnp.maximum(largest, jnp.max(jnp.abs(x)))
  # A power of two scales without rounding; beyond 2**126 its inverse would be subnormal.
  ordinary = (largest > 0) & jnp.isfinite(largest)
  exponent = jnp.where(ordinary, jnp.clip(jnp.frexp(largest)[1], -126, 126), 0)
  scale = jnp.ldexp(jnp.float32(1), -exponent)
  squares = jnp.float32(0)
  for x in leaves:
    squares += jnp.sum(jnp.square(x * scale))
  return scale, jnp.sqrt(squares)


def clip_by_global_norm(tree: Tree, bound: jax.typing.ArrayLike) -> tuple[Tree, jax.Array]:
  """Returns (the tree scaled to a norm of at most `bound`, its norm before).

  The leaves keep their dtypes. The norm of a clipped result is `bound` up to float32's rounding.
  The module's docstring lists the edge cases.

  Args:
    tree: arrays of floats, of any shapes.
    bound: a number >= 0, or a float32 scalar (a bound that adapts).

  Raises:
    ValueError: `bound` is a number that is negative or not finite.
  """
  if isinstance(bound, int | float):
    validate.non_negative(bound=bound)
  bound = jnp.asarray(bound, jnp.float32)
  scale, scaled = scaled_norm(tree)
  # An update inside the ball is returned as it is, not multiplied by 1 / 1: bit for bit.
  norm = scaled / scale
  inside = norm <= bound
  factor = jnp.where(jnp.isfinite(scaled), bound / scaled, jnp.float32(jnp.nan))

  def clip(x: jax.Array) -> jax.Array:
    # Scaled first: bound / norm alone may be subnormal, and would lose bits or vanish.
    return jnp.where(inside, x, ((x.astype(jnp.float32) * scale) * factor).astype(x.dtype))

  return jax.tree.map(clip, tree), norm
