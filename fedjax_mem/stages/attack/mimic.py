"""Mimic: hostile clients copy one honest client."""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, validate
from fedjax_mem.stages.attack import _base as h
from fedjax_mem.stages.attack._base import Attack, Seen


def mimic(
  attackers: float,
  target: int | None = None,
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer whose hostile clients copy one honest client, which then counts too much.

  Nobody can tell them from honest clients; it hurts where clients differ.

  Args:
    attackers: how many, or their share: see `hostile`.
    target: id of the client that is copied, where it takes part; None, or where it does not: the
      honest client with the lowest id.
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.

  Reference: Karimireddy et al. (2022), arXiv 2006.09365, section 4.1 (the client that is copied is
  chosen there by the direction of largest variance, here by its id).

  Raises:
    ValueError: an argument is out of range.
  """
  if target is not None:
    validate.integer(at_least=0, target=target)

  def lie(seen: Seen):
    id, last = seen.ctx.cohort.id, jnp.int32(jnp.iinfo(jnp.int32).max)
    order = jnp.where(seen.good, id, last)
    if target is not None:
      order = jnp.where(seen.good & (id == target), -1, order)
    chosen = jnp.argmin(order)
    return jax.tree.map(lambda x: x[chosen], seen.updates)

  return h.layer('mimic', Attack(h.hostile(attackers, num_clients, seed), lie))
