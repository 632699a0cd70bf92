"""Local differential privacy by Gaussian noise."""

from fedjax_mem.core import (
  Layer,
  Mechanism,
  validate,
)
from fedjax_mem.stages.privacy import _base as kit
from fedjax_mem.stages.privacy._local import layers


def local(
  l2_clip_norm: float,
  noise_multiplier: float,
  *,
  mechanism: str | type[Mechanism] = 'gaussian',
  per_layer: bool = False,
) -> tuple[Layer, ...]:
  """Returns the layers in which each client clips its update in L2 and adds noise.

  >>> fm.apply([[6.0, 8.0], [0.0, 0.0]], local(5.0, 1e-6)).update.round(3).tolist()
  [1.5, 2.0]

  Args:
    l2_clip_norm: bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: standard deviation of each client's noise over the bound; 0 only clips.
    mechanism: noise of floats scaled to the L2 norm: 'gaussian', or 'package.module:Class'.
    per_layer: clip each of L arrays to l2_clip_norm / sqrt(L) instead of all together.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  clip = kit.chosen_clip(per_layer)
  made = kit.noise_of_floats(mechanism, 'l2', noise_multiplier)
  return layers('local', clip, l2_clip_norm, kit.within(float(l2_clip_norm)), made)
