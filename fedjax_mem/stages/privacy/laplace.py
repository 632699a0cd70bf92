"""Central differential privacy by Laplace noise: pure epsilon for each round."""

from fedjax_mem.core import (
  Layer,
  Mechanism,
  validate,
)
from fedjax_mem.stages.privacy import _base as kit


def laplace(
  l1_clip_norm: float,
  noise_multiplier: float,
  *,
  mechanism: str | type[Mechanism] = 'laplace',
) -> Layer:
  """Returns the layer that clips each update to an L1 ball and adds Laplace noise: pure epsilon.

  >>> fm.apply([[6.0, 8.0], [0.0, 0.0]], laplace(7.0, 1e-6)).update.round(3).tolist()
  [1.5, 2.0]

  Args:
    l1_clip_norm: bound on the L1 norm of a client's whole update, > 0.
    noise_multiplier: scale of the noise over the bound: epsilon is 1 / noise_multiplier a round
      without amplification; 0 only clips and claims no privacy.
    mechanism: noise of floats scaled to the L1 norm: 'laplace', or 'package.module:Class'.

  Reference: Dwork et al. (2006), Calibrating noise to sensitivity, Theorem 1.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l1_clip_norm=l1_clip_norm)
  made = kit.noise_of_floats(mechanism, 'l1', noise_multiplier)
  return kit.layer('laplace', kit.clip_l1, l1_clip_norm, kit.within_l1(float(l1_clip_norm)), made)
