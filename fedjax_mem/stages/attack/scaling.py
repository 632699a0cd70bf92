"""Scaling (model replacement): hostile clients send a multiple of their own update."""

import jax.numpy as jnp

from fedjax_mem.core import Layer, tree, validate
from fedjax_mem.stages.attack import _base as h
from fedjax_mem.stages.attack._base import Attack, Seen


def scaling(
  attackers: float,
  factor: float | None = None,
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer whose hostile clients send a multiple of their own update.

  Args:
    attackers: how many, or their share: see `hostile`.
    factor: > 0; None: model replacement, the total weight over that of the hostile clients, so
      that the average becomes their average if the others send nothing.
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.

  Reference: Bagdasaryan et al. (2020), arXiv 1807.00459, section 4.2, equation 3.

  Raises:
    ValueError: an argument is out of range.
  """
  if factor is not None:
    validate.positive(factor=factor)

  def lie(seen: Seen):
    own = jnp.where(seen.bad, seen.weights, 0).sum()
    whole = seen.weights.sum() / jnp.where(own > 0, own, 1)
    return tree.scale(whole if factor is None else jnp.float32(factor), seen.updates)

  who = h.hostile(attackers, num_clients, seed)
  return h.layer('scaling', Attack(who, lie, together=False, alone=factor is not None))
