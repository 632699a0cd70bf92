"""Gaussian attack: hostile clients send normal noise."""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, validate
from fedjax_mem.stages.attack import _base as h
from fedjax_mem.stages.attack._base import Attack, Seen


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
