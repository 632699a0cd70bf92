"""Central differential privacy by Laplace noise: pure epsilon for each round."""

from fedjax_mem import mechanisms
from fedjax_mem.core import (
  Layer,
  Mechanism,
  validate,
)
from fedjax_mem.stages.privacy import _clipping as clipping
from fedjax_mem.stages.privacy import _noising as noising
from fedjax_mem.stages.privacy._central import layer


def laplace(
  l1_clip_norm: float,
  noise_multiplier: float,
  *,
  mechanism: str | type[Mechanism] = 'laplace',
) -> Layer:
  """Returns the layer that clips each update to an L1 ball and adds Laplace noise: pure epsilon.

  Args:
    l1_clip_norm: bound on the L1 norm of a client's whole update, > 0.
    noise_multiplier: scale of the noise over the bound: epsilon is 1 / noise_multiplier a round
      without amplification; 0 clips only, and then claims no privacy at all.
    mechanism: noise of floats scaled to the L1 norm: 'laplace', or 'package.module:Class'.

  Reference: Dwork et al. (2006), Calibrating noise to sensitivity, Theorem 1.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l1_clip_norm=l1_clip_norm)
  validate.non_negative(noise_multiplier=noise_multiplier)
  kind = mechanisms.find(mechanism, 'l1', integers=False, fresh=True)
  made = mechanisms.make(kind, noise_multiplier)
  return layer('laplace', clipping.l1, l1_clip_norm, noising.within_l1(float(l1_clip_norm)), made)
