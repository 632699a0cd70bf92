"""Inner product manipulation: a negative multiple of the honest mean.

The hostile clients know all honest updates and send the same. An update is server - client in this
package, so what points against the mean update hinders descent.
"""

import jax.numpy as jnp

from fedjax_mem.core import Layer, tree, validate
from fedjax_mem.stages.attack import _base as h
from fedjax_mem.stages.attack._base import Attack


def ipm(
  attackers: float,
  factor: float = 0.5,
  num_clients: int | None = None,
  seed: int | None = None,
) -> Layer:
  """Returns the layer of inner product manipulation: -factor times the mean of honest updates.

  Args:
    attackers: how many, or their share: see `hostile`.
    factor: epsilon, > 0: small ones hide from rules that go by distance, large ones break the mean.
    num_clients: N, for a share or a seed.
    seed: of the hostile set; None: the first clients.

  Reference: Xie et al. (2020), arXiv 1903.03936, section 3.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(factor=factor)
  lie = lambda seen: tree.scale(-jnp.float32(factor), seen.mean())
  return h.layer('ipm', Attack(h.hostile(attackers, num_clients, seed), lie))
