"""Mimic: hostile clients copy one honest client."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Layer, Tree, validate
from fedjax_mem.stages.attack import _base as base
from fedjax_mem.stages.attack._base import Attack, Seen


def mimic(
  attackers: float,
  target: int | None = None,
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer whose hostile clients copy one honest client, which then counts too much.

  The copies cannot be told from honest updates. The attack does harm if clients' data differ.

  >>> fm.apply([[9.0], [2.0], [5.0]], mimic(1)).update.round(3).tolist()
  [3.0]

  Client 0 sends 2, the update of client 1.

  Args:
    attackers: number of hostile clients, an integer >= 0, or their share of the population, a float
      in [0, 1), rounded down.
    target: id of the client that is copied. If it is None, hostile or not in the cohort: the honest
      client of the cohort with the lowest id.
    num_clients: N, needed for a share or a seed.
    seed: draws which clients are hostile; None: those with the lowest ids.

  Reference: Karimireddy et al. (2022), arXiv 2006.09365, section 4.1 (the client that is copied is
  chosen there by the direction of largest variance, here by its id).

  Raises:
    ValueError: an argument is out of range.
  """
  if target is not None:
    validate.integer(at_least=0, target=target)

  def forge(seen: Seen) -> Tree:
    id, last = seen.ctx.cohort.id, jnp.int32(np.iinfo(np.int32).max)
    order = jnp.where(seen.good, id, last)
    if target is not None:
      order = jnp.where(seen.good & (id == target), -1, order)
    chosen = jnp.argmin(order)
    return jax.tree.map(lambda x: x[chosen], seen.updates)

  return base.layer('mimic', Attack(base.hostile(attackers, num_clients, seed), forge))
