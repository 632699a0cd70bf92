"""Sign flip: hostile clients send their own update with its sign changed."""

import jax.numpy as jnp

from fedjax_mem.core import Layer, tree, validate
from fedjax_mem.stages.attack import _base as h
from fedjax_mem.stages.attack._base import Attack


def sign_flip(
  attackers: float, scale: float = 1.0, num_clients: int | None = None, seed: int | None = None
) -> Layer:
  """Returns the layer whose hostile clients send -scale times their own update.

  Args:
    attackers: how many, or their share: see `hostile`.
    scale: > 0.
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.

  Reference: Li et al. (2019), RSA, arXiv 1811.03761, section 5.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(scale=scale)
  lie = lambda seen: tree.scale(-jnp.float32(scale), seen.updates)
  who = h.hostile(attackers, num_clients, seed)
  return h.layer('sign_flip', Attack(who, lie, together=False, alone=True))
