"""Attacks: hostile clients that change their training data, or the messages that they send."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.attack.alie import alie
from fedjax_mem.stages.attack.backdoor import backdoor
from fedjax_mem.stages.attack.gaussian import gaussian
from fedjax_mem.stages.attack.ipm import ipm
from fedjax_mem.stages.attack.label_flip import label_flip
from fedjax_mem.stages.attack.mimic import mimic
from fedjax_mem.stages.attack.min_max import min_max
from fedjax_mem.stages.attack.min_sum import min_sum
from fedjax_mem.stages.attack.scaling import scaling
from fedjax_mem.stages.attack.sign_flip import sign_flip

ATTACKS: dict[str, Callable[..., Layer]] = {
  'label_flip': label_flip,
  'backdoor': backdoor,
  'sign_flip': sign_flip,
  'gaussian': gaussian,
  'scaling': scaling,
  'alie': alie,
  'ipm': ipm,
  'min_max': min_max,
  'min_sum': min_sum,
  'mimic': mimic,
}

__all__ = (
  'ATTACKS',
  'alie',
  'backdoor',
  'gaussian',
  'ipm',
  'label_flip',
  'mimic',
  'min_max',
  'min_sum',
  'scaling',
  'sign_flip',
)
