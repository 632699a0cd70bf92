"""Flags of JAX and XLA that change what a run computes, as its manifest states them.

Draws do not depend on flags: keys name their generator, draws their dtype, and what else changes a
draw is fixed while programs are made (`core.keys.fixed`). What is left changes how numbers are
rounded, or, with 64 bits, what type they have.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax

_CONFIG = (
  'jax_enable_x64',
  'jax_default_matmul_precision',
  'jax_default_dtype_bits',
  'jax_disable_most_optimizations',
)
_ENVIRONMENT = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'NVIDIA_TF32_OVERRIDE')
_TYPES = 'jax_enable_x64'
# Flags of XLA that change no result: the number of devices is stated for itself.
_IDLE = re.compile(r'--xla_(force_host_platform_device_count|dump_\w+|hlo_profile\w*)(=|$)')


def stated() -> dict[str, Any]:
  """Returns the flags that matter in this process, those at no value left out."""
  settings = jax.config.values
  said = {name: settings[name] for name in _CONFIG if settings.get(name)}
  for name in _ENVIRONMENT:
    words = sorted(x for x in os.environ.get(name, '').split() if not _IDLE.match(x))
    if words:
      said[name] = ' '.join(words)
  return said


def check(recorded: Mapping[str, Any]) -> list[str]:
  """Returns a line about each flag that is not as a run began.

  Args:
    recorded: what `stated` gave then.

  Raises:
    ValueError: a flag by which numbers have other types; the message says how to set it.
  """
  now = stated()
  if recorded.get(_TYPES, False) != now.get(_TYPES, False):
    before = bool(recorded.get(_TYPES, False))
    raise ValueError(
      f'{_TYPES} must be {before} as when the run began, got {not before}: resume with '
      f'{_TYPES.upper()}={int(before)} in the environment.'
    )
  return [
    f'resumed with {name} = {now.get(name)!r}, not {recorded.get(name)!r}: results may differ from '
    'those of the run without a stop'
    for name in (*_CONFIG, *_ENVIRONMENT)
    if recorded.get(name) != now.get(name)
  ]
