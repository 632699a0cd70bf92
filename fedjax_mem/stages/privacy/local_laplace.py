"""Local differential privacy by Laplace noise: pure epsilon for each participation."""

from fedjax_mem.core import (
  Layer,
  Mechanism,
  validate,
)
from fedjax_mem.stages.privacy import _base as kit
from fedjax_mem.stages.privacy._local import layers


def local_laplace(
  l1_clip_norm: float,
  noise_multiplier: float,
  *,
  mechanism: str | type[Mechanism] = 'laplace',
) -> tuple[Layer, ...]:
  """Returns the layers in which each client clips its update in L1 and adds Laplace noise.

  >>> fm.apply([[6.0, 8.0], [0.0, 0.0]], local_laplace(7.0, 1e-6)).update.round(3).tolist()
  [1.5, 2.0]

  Args:
    l1_clip_norm: bound on the L1 norm of a client's whole update, > 0.
    noise_multiplier: scale of each client's noise over the bound; 0 only clips.
    mechanism: noise of floats scaled to the L1 norm: 'laplace', or 'package.module:Class'.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l1_clip_norm=l1_clip_norm)
  made = kit.noise_of_floats(mechanism, 'l1', noise_multiplier)
  own = kit.within_l1(float(l1_clip_norm))
  return layers('local_laplace', kit.clip_l1, l1_clip_norm, own, made)
