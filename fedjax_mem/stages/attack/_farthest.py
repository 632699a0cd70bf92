"""What min-max and min-sum share: the farthest step from the honest mean that stays hidden.

The hostile clients know all honest updates and send the same: mean + step * p, with a direction p
that hinders descent. An update is server - client in this package, so what points against the mean
update hinders.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import tree
from fedjax_mem.stages.attack._base import Seen

DIRECTIONS = ('std', 'unit', 'sign')


def pairs(seen: Seen) -> jax.Array:
  return seen.good[:, None] & seen.good[None]


def root(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
  """Returns the larger root of a x^2 + 2 b x + c, for c <= 0; 0 where there is no direction."""
  root = jnp.sqrt(jnp.maximum(b * b - a * c, 0))
  return jnp.where(a > 0, jnp.maximum(root - b, 0) / jnp.where(a > 0, a, 1), 0)


def _direction(seen: Seen, direction: str, mean) -> jax.Array:
  if direction == 'std':
    return tree.scale(jnp.float32(-1), seen.deviation(mean))
  if direction == 'sign':
    return jax.tree.map(lambda x: -jnp.sign(x), mean)
  return tree.scale(-1 / jnp.maximum(tree.norm(mean), 1e-30), mean)


def moved(seen: Seen, direction: str, step: jax.Array):
  mean = seen.mean()
  step = jnp.where(seen.good.any(), step, 0)
  return tree.add(mean, tree.scale(step, _direction(seen, direction, mean)))


def geometry(seen: Seen, direction: str):
  """Returns what the squared distance of mean + step * p to update i is made of.

  Returns:
    |mean - x_i|^2 [C], <p, mean - x_i> [C], |p|^2, and the squared distances [C, C].
  """
  mean = seen.mean()
  x = tree.ravel(jax.tree.map(lambda u, m: u - m[None], seen.updates, mean), 1)
  x = tree.keep(seen.good, x)
  p = tree.ravel(_direction(seen, direction, mean))
  product = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  square, squared = product(x, x.T), jnp.square(p).sum()
  away = jnp.diagonal(square)
  distances = jnp.maximum(away[:, None] + away[None] - (square + square.T), 0)
  return away, -product(x, p), squared, distances
