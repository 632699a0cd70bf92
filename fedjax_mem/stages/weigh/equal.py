"""Every client counts the same."""

import jax.numpy as jnp

from fedjax_mem.core import Layer
from fedjax_mem.stages.weigh._base import KEPT, weighing


def equal(divisor: float | None = None) -> Layer:
  """Returns the layer that averages with equal weights (a client of weight 0 takes no part).

  >>> fm.apply([[1.0], [5.0]], equal(), weights=[3, 1]).update.round(3).tolist()
  [3.0]

  Args:
    divisor: None to divide by the number of clients that arrived, or a fixed number > 0: under
      differential privacy the expected cohort (McMahan et al. 2018, arXiv 1710.06963).

  Raises:
    ValueError: the divisor is not > 0.
  """
  return weighing(lambda n: (n > 0).astype(jnp.float32), KEPT, divisor, alike=True)
