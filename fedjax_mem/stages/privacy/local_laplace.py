"""Local differential privacy by Laplace noise: pure epsilon for each participation."""

from fedjax_mem.core import (
  Layer,
  Mechanism,
  validate,
)
from fedjax_mem.stages.privacy import _clipping as clipping
from fedjax_mem.stages.privacy import _noising as noising
from fedjax_mem.stages.privacy._local import layers, noise_of_floats


def local_laplace(
  l1_clip_norm: float,
  noise_multiplier: float,
  *,
  mechanism: str | type[Mechanism] = 'laplace',
) -> tuple[Layer, ...]:
  """Returns the layers in which each client clips its update in L1 and adds Laplace noise.

  Args:
    l1_clip_norm: bound on the L1 norm of a client's whole update, > 0.
    noise_multiplier: scale of each client's noise over the bound; 0 clips only.
    mechanism: noise of floats scaled to the L1 norm: 'laplace', or 'package.module:Class'.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l1_clip_norm=l1_clip_norm)
  made = noise_of_floats(mechanism, 'l1', noise_multiplier)
  own = noising.within_l1(float(l1_clip_norm))
  return layers('local_laplace', clipping.l1, l1_clip_norm, own, made)
