"""Sign flip: hostile clients send their own update with its sign changed."""

import jax.numpy as jnp

from fedjax_mem.core import Layer, tree, validate
from fedjax_mem.stages.attack import _base as base
from fedjax_mem.stages.attack._base import Attack


def sign_flip(
  attackers: float, scale: float = 1.0, num_clients: int | None = None, seed: int | None = None
) -> Layer:
  """Returns the layer whose hostile clients send -scale times their own update.

  >>> fm.apply([[2.0], [3.0], [5.0]], sign_flip(1)).update.round(3).tolist()
  [2.0]

  Args:
    attackers: number of hostile clients, an integer >= 0, or their share of the population, a float
      in [0, 1), rounded down.
    scale: > 0.
    num_clients: N, needed for a share or a seed.
    seed: draws which clients are hostile; None: those with the lowest ids.

  Reference: Li et al. (2019), RSA, arXiv 1811.03761, section 5.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(scale=scale)
  forge = lambda seen: tree.scale(-jnp.float32(scale), seen.updates)
  who = base.hostile(attackers, num_clients, seed)
  return base.layer('sign_flip', Attack(who, forge, same=False, independent=True))
