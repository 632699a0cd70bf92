"""Local differential privacy by Gaussian noise."""

from fedjax_mem.core import (
  Layer,
  Mechanism,
  validate,
)
from fedjax_mem.stages.privacy import _clipping as clipping
from fedjax_mem.stages.privacy import _noising as noising
from fedjax_mem.stages.privacy._local import layers, noise_of_floats


def local(
  l2_clip_norm: float,
  noise_multiplier: float,
  *,
  mechanism: str | type[Mechanism] = 'gaussian',
  per_layer: bool = False,
) -> tuple[Layer, ...]:
  """Returns the layers in which each client clips its update in L2 and adds noise.

  Args:
    l2_clip_norm: bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: standard deviation of each client's noise over the bound; 0 clips only.
    mechanism: noise of floats scaled to the L2 norm: 'gaussian', or 'package.module:Class'.
    per_layer: clip each of L arrays to l2_clip_norm / sqrt(L) instead of all together.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  clip = clipping.choose(per_layer)
  made = noise_of_floats(mechanism, 'l2', noise_multiplier)
  return layers('local', clip, l2_clip_norm, noising.within(float(l2_clip_norm)), made)
