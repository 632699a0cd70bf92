"""Scaling (model replacement): hostile clients send a multiple of their own update."""

import jax.numpy as jnp

from fedjax_mem.core import Layer, Tree, tree, validate
from fedjax_mem.stages.attack import _base as base
from fedjax_mem.stages.attack._base import Attack, Seen


def scaling(
  attackers: float,
  factor: float | None = None,
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer whose hostile clients send a multiple of their own update.

  >>> fm.apply([[1.0], [0.0], [0.0], [0.0]], scaling(1)).update.round(3).tolist()
  [1.0]

  Args:
    attackers: number of hostile clients, an integer >= 0, or their share of the population, a float
      in [0, 1), rounded down.
    factor: > 0; None: model replacement, the total weight divided by that of the hostile clients.
      Then the average becomes the hostile clients' average if the others send zeros.
    num_clients: N, needed for a share or a seed.
    seed: draws which clients are hostile; None: those with the lowest ids.

  Reference: Bagdasaryan et al. (2020), arXiv 1807.00459, section 4.2, equation 3.

  Raises:
    ValueError: an argument is out of range.
  """
  if factor is not None:
    validate.positive(factor=factor)

  def forge(seen: Seen) -> Tree:
    own = jnp.where(seen.bad, seen.weights, 0).sum()
    whole = seen.weights.sum() / jnp.where(own > 0, own, 1)
    return tree.scale(whole if factor is None else jnp.float32(factor), seen.updates)

  who = base.hostile(attackers, num_clients, seed)
  return base.layer('scaling', Attack(who, forge, same=False, independent=factor is not None))
