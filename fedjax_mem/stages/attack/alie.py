"""A little is enough: a small step away from the honest mean, in every coordinate.

The hostile clients know all honest updates and send the same.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, tree, validate
from fedjax_mem.stages.attack import _base as h
from fedjax_mem.stages.attack._base import Attack, Seen


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
