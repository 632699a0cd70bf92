"""Attacks by clients that know all honest updates and send the same: hidden, but harmful.

They send mean + step of the honest updates in a direction that hinders descent. Here and in the
rest of the package an update is server - client, so what lies against the mean update hinders.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, tree, validate
from fedjax_mem.stages.attack import _base as h
from fedjax_mem.stages.attack._base import Attack, Seen

DIRECTIONS = ('std', 'unit', 'sign')


def alie(
  attackers: float, z: float | None = None, num_clients: int | None = None, seed: int | None = None
) -> Layer:
  """Returns the layer of "a little is enough": mean - z deviations, coordinate by coordinate.

  Args:
    attackers: how many, or their share: see `hostile`.
    z: > 0; None: the largest with which enough honest clients are expected to lie further out than
      the hostile ones: Phi(z) = (n - m - s) / (n - m) for m hostile of n and s = n // 2 + 1 - m.
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.

  Reference: Baruch et al. (2019), arXiv 1902.06156, Algorithm 3. Mean and deviation (divisor n) are
  those of the honest clients of the cohort.

  Raises:
    ValueError: an argument is out of range.
  """
  if z is not None:
    validate.positive(z=z)

  def lie(seen: Seen):
    mean = seen.mean()
    by = _largest_z(seen) if z is None else jnp.float32(z)
    return tree.sub(mean, tree.scale(by, seen.deviation(mean)))

  return h.layer('alie', Attack(h.hostile(attackers, num_clients, seed), lie))


def _largest_z(seen: Seen) -> jax.Array:
  bad = seen.bad.sum().astype(jnp.float32)
  honest = jnp.maximum(seen.good.sum(), 1).astype(jnp.float32)
  needed = jnp.floor((honest + bad) / 2 + 1) - bad
  # With half of the clients there is nobody to be won over: any z goes.
  return jax.scipy.special.ndtri(jnp.clip((honest - needed) / honest, 1e-6, 1 - 1e-6))


def ipm(
  attackers: float,
  factor: float = 0.5,
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer of inner product manipulation: -factor times the mean of honest updates.

  Args:
    attackers: how many, or their share: see `hostile`.
    factor: epsilon, > 0: small ones hide from rules that go by distance, large ones break the mean.
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.

  Reference: Xie et al. (2020), arXiv 1903.03936, section 3.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(factor=factor)
  lie = lambda seen: tree.scale(-jnp.float32(factor), seen.mean())
  return h.layer('ipm', Attack(h.hostile(attackers, num_clients, seed), lie))


def min_max(
  attackers: float,
  direction: str = 'std',
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer whose clients go as far as no honest update is from another.

  The step is the largest for which the greatest distance to an honest update is at most the
  greatest between two of them; it is the root of a quadratic, not searched for.

  Args:
    attackers: how many, or their share: see `hostile`.
    direction: 'std' (minus the deviations), 'unit' (against the mean) or 'sign' (of the same).
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.

  Reference: Shejwalkar and Houmansadr (2021), Manipulating the Byzantine, NDSS, equation 8.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.one_of(DIRECTIONS, direction=direction)

  def lie(seen: Seen):
    away, toward, squared, distances = _geometry(seen, direction)
    limit = jnp.where(_pairs(seen), distances, 0).max()
    roots = _root(squared, toward, away - limit)
    step = jnp.where(seen.good, roots, jnp.inf).min()
    return _moved(seen, direction, step)

  return h.layer('min_max', Attack(h.hostile(attackers, num_clients, seed), lie))


def min_sum(
  attackers: float,
  direction: str = 'std',
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer whose clients go as far as no honest update is from all others together.

  As `min_max`, with the sum of squared distances to the honest updates.

  Args:
    attackers: how many, or their share: see `hostile`.
    direction: 'std' (minus the deviations), 'unit' (against the mean) or 'sign' (of the same).
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.

  Reference: Shejwalkar and Houmansadr (2021), Manipulating the Byzantine, NDSS, equation 9.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.one_of(DIRECTIONS, direction=direction)

  def lie(seen: Seen):
    away, toward, squared, distances = _geometry(seen, direction)
    limit = jnp.where(_pairs(seen), distances, 0).sum(1).max()
    total = lambda values: jnp.where(seen.good, values, 0).sum()
    count = seen.good.sum().astype(jnp.float32)
    step = _root(count * squared, total(toward), total(away) - limit)
    return _moved(seen, direction, step)

  return h.layer('min_sum', Attack(h.hostile(attackers, num_clients, seed), lie))


def _pairs(seen: Seen) -> jax.Array:
  return seen.good[:, None] & seen.good[None]


def _root(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
  """Returns the larger root of a x^2 + 2 b x + c, for c <= 0; 0 where there is no direction."""
  root = jnp.sqrt(jnp.maximum(b * b - a * c, 0))
  return jnp.where(a > 0, jnp.maximum(root - b, 0) / jnp.where(a > 0, a, 1), 0)


def _direction(seen: Seen, direction: str, mean) -> jax.Array:
  if direction == 'std':
    return tree.scale(jnp.float32(-1), seen.deviation(mean))
  if direction == 'sign':
    return jax.tree.map(lambda x: -jnp.sign(x), mean)
  return tree.scale(-1 / jnp.maximum(tree.norm(mean), 1e-30), mean)


def _moved(seen: Seen, direction: str, step: jax.Array):
  mean = seen.mean()
  step = jnp.where(seen.good.any(), step, 0)
  return tree.add(mean, tree.scale(step, _direction(seen, direction, mean)))


def _geometry(seen: Seen, direction: str):
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
