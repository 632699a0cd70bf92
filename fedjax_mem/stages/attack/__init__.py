"""Attacks: what hostile clients do to their data, or to the messages that they send."""

from collections.abc import Callable

from fedjax_mem.core import Layer
from fedjax_mem.stages.attack.colluding import alie, ipm, min_max, min_sum
from fedjax_mem.stages.attack.data import backdoor, label_flip
from fedjax_mem.stages.attack.simple import gaussian, mimic, scaling, sign_flip

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
