"""Clients count in proportion to their examples up to a public cap."""

import jax.numpy as jnp

from fedjax_mem.core import Layer, validate
from fedjax_mem.stages.weigh._base import KEPT, weighing


def capped(cap: float, divisor: float | None = None) -> Layer:
  """Returns the layer that averages with the weights min(n_k / cap, 1), which are at most 1.

  >>> fm.apply([[1.0], [4.0]], capped(2.0), weights=[3, 1]).update.round(3).tolist()
  [2.0]

  The weights are 1 and 0.5.

  Args:
    cap: examples at which a client's weight stops growing, public, > 0.
    divisor: None to divide by the weights that arrived, or a fixed number > 0: under differential
      privacy the expected sum of weights (McMahan et al. 2018, arXiv 1710.06963, section 3).

  Raises:
    ValueError: the cap or the divisor is not > 0.
  """
  validate.positive(cap=cap)
  return weighing(lambda n: jnp.minimum(n / cap, 1.0), KEPT, divisor)
