"""What min-max and min-sum share: the largest step from the honest mean that stays hidden.

The hostile clients know all honest updates and all send the same: mean + step * p, with a direction
p that hinders descent. In this package an update is server - client, so it is a descent direction:
steps against the mean update hinder descent.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Tree, tree
from fedjax_mem.stages.attack._base import Seen

DIRECTIONS = ('std', 'unit', 'sign')


def pairs(seen: Seen) -> jax.Array:
  """Returns which pairs of clients are both honest, [C, C] booleans."""
  return seen.good[:, None] & seen.good[None]


def root(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
  """Returns the larger root of a x^2 + 2 b x + c, for c <= 0; 0 if a is 0 (no direction)."""
  spread = jnp.sqrt(jnp.maximum(b * b - a * c, 0))
  return jnp.where(a > 0, jnp.maximum(spread - b, 0) / jnp.where(a > 0, a, 1), 0)


def _direction(seen: Seen, direction: str, mean: Tree) -> Tree:
  """Returns p, a tree like the mean."""
  if direction == 'std':
    return tree.scale(jnp.float32(-1), seen.deviation(mean))
  if direction == 'sign':
    return jax.tree.map(lambda x: -jnp.sign(x), mean)
  return tree.scale(-1 / jnp.maximum(tree.norm(mean), 1e-30), mean)


def moved(seen: Seen, direction: str, step: jax.Array) -> Tree:
  """Returns mean + step * p; the mean (zeros) if there is no honest client."""
  mean = seen.mean()
  step = jnp.where(seen.good.any(), step, 0)
  return tree.add(mean, tree.scale(step, _direction(seen, direction, mean)))


def geometry(seen: Seen, direction: str) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Returns the coefficients of squared distances to mean + step * p, and those between updates.

  That to update i is |mean - x_i|^2 + 2 step <p, mean - x_i> + step^2 |p|^2.

  Returns:
    |mean - x_i|^2 [C], <p, mean - x_i> [C], |p|^2, and |x_i - x_j|^2 [C, C].
  """
  mean = seen.mean()
  x = tree.ravel(jax.tree.map(lambda u, m: u - m[None], seen.updates, mean), 1)
  x = tree.keep(seen.good, x)
  p = tree.ravel(_direction(seen, direction, mean))

  def product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

  square, squared = product(x, x.T), jnp.square(p).sum()
  away = jnp.diagonal(square)
  # The transpose is added so that d(i, j) = d(j, i) in spite of rounding.
  distances = jnp.maximum(away[:, None] + away[None] - (square + square.T), 0)
  return away, -product(x, p), squared, distances
