"""Attacks that need no knowledge of others: a flipped sign, noise, a scaled update, a copy."""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, tree, validate
from fedjax_mem.stages.attack import _base as h
from fedjax_mem.stages.attack._base import Attack, Seen


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


def gaussian(
  attackers: float, stddev: float = 1.0, num_clients: int | None = None, seed: int | None = None
) -> Layer:
  """Returns the layer whose hostile clients send independent normal noise.

  Args:
    attackers: how many, or their share: see `hostile`.
    stddev: of every coordinate, in the units of an update, > 0.
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.

  Reference: Blanchard et al. (2017), Machine learning with adversaries, section 5.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(stddev=stddev)
  who = h.hostile(attackers, num_clients, seed)

  def lie(seen: Seen):
    leaves, structure = jax.tree.flatten(seen.updates)
    most = min(who.count, len(seen.bad))
    if not most:
      return seen.updates
    # Only as many draws as there can be hostile clients.
    (rows,) = jnp.nonzero(seen.bad, size=most, fill_value=len(seen.bad))
    ids = seen.ctx.cohort.id.at[rows].get(mode='clip')
    sent = []
    for number, x in enumerate(leaves):
      key = lambda id, number=number: jax.random.fold_in(
        jax.random.fold_in(seen.ctx.round_key, id), number
      )
      draw = lambda id, x=x, key=key: stddev * jax.random.normal(key(id), x.shape[1:])
      sent.append(x.at[rows].set(jax.vmap(draw)(ids), mode='drop'))
    return jax.tree.unflatten(structure, sent)

  return h.layer('gaussian', Attack(who, lie, together=False, alone=True))


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
