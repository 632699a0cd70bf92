"""Gaussian attack: hostile clients send Gaussian noise."""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, Tree, validate
from fedjax_mem.stages.attack import _base as base
from fedjax_mem.stages.attack._base import Attack, Seen


def gaussian(
  attackers: float, stddev: float = 1.0, num_clients: int | None = None, seed: int | None = None
) -> Layer:
  """Returns the layer whose hostile clients send independent Gaussian noise.

  >>> rule = fm.stages.aggregate.median()
  >>> applied = fm.apply([[1.0], [1.0], [1.0]], gaussian(1, stddev=100.0), rule)
  >>> int(applied.metrics['gaussian/attackers']), applied.update.tolist()
  (1, [1.0])

  Args:
    attackers: number of hostile clients, an integer >= 0, or their share of the population, a float
      in [0, 1), rounded down.
    stddev: of every coordinate, in the units of an update, > 0.
    num_clients: N, needed for a share or a seed.
    seed: draws which clients are hostile; None: those with the lowest ids.

  Reference: Blanchard et al. (2017), Machine learning with adversaries (its experiments).

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(stddev=stddev)
  who = base.hostile(attackers, num_clients, seed)

  def forge(seen: Seen) -> Tree:
    leaves, structure = jax.tree.flatten(seen.updates)
    most = min(who.count, len(seen.bad))
    if not most:
      return seen.updates
    # Noise is drawn for the rows of hostile clients only: at most `most` of the C rows.
    (rows,) = jnp.nonzero(seen.bad, size=most, fill_value=len(seen.bad))
    ids = seen.ctx.cohort.id.at[rows].get(mode='clip')
    sent = []
    for number, x in enumerate(leaves):

      def draw(id: jax.Array, number: int = number, x: jax.Array = x) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(seen.ctx.round_key, id), number)
        return stddev * jax.random.normal(key, x.shape[1:], jnp.float32)

      sent.append(x.at[rows].set(jax.vmap(draw)(ids), mode='drop'))
    return jax.tree.unflatten(structure, sent)

  return base.layer('gaussian', Attack(who, forge, same=False, independent=True))
