"""Inner product manipulation: a negative multiple of the honest mean.

The hostile clients know all honest updates and all send the same. In this package an update is
server - client, so it is a descent direction: a step against the mean update hinders descent.
"""

import jax.numpy as jnp

from fedjax_mem.core import Layer, tree, validate
from fedjax_mem.stages.attack import _base as base
from fedjax_mem.stages.attack._base import Attack


def ipm(
  attackers: float,
  factor: float = 0.5,
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer of inner product manipulation: -factor times the mean of honest updates.

  >>> fm.apply([[9.0], [2.0], [4.0]], ipm(1, factor=0.5)).update.round(3).tolist()
  [1.5]

  Client 0 sends -1.5.

  Args:
    attackers: number of hostile clients, an integer >= 0, or their share of the population, a float
      in [0, 1), rounded down.
    factor: epsilon, > 0: a small one evades rules based on distances, a large one breaks the mean.
    num_clients: N, needed for a share or a seed.
    seed: draws which clients are hostile; None: those with the lowest ids.

  Reference: Xie et al. (2020), arXiv 1903.03936, section 3.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(factor=factor)
  forge = lambda seen: tree.scale(-jnp.float32(factor), seen.mean())
  return base.layer('ipm', Attack(base.hostile(attackers, num_clients, seed), forge))
