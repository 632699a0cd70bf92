"""Settings to make before jax starts: number of host devices, cache of compiled programs."""

import os
import pathlib

import jax

from fedjax_mem.runner import cluster
from fedjax_mem.runner.cores import cores as cores

CACHE_VARIABLE = 'FEDJAX_MEM_CACHE'


def cache_folder() -> pathlib.Path:
  """Returns the folder of caches: $FEDJAX_MEM_CACHE or ~/.cache/fedjax_mem."""
  given = os.environ.get(CACHE_VARIABLE)
  return pathlib.Path(given) if given else pathlib.Path.home() / '.cache' / 'fedjax_mem'


def prepare(devices: int | str) -> str | None:
  """Asks jax for one host device per core (or `devices`), and returns a note if it is too late.

  Each operation of a small model runs on one core, so a CPU is used best as one device per core.
  On a GPU or TPU the number of host devices changes nothing.

  Args:
    devices: as `execution.devices`: a number, or 'auto'.
  """
  _keep_compiled()
  if cluster.current().begun or jax.distributed.is_initialized():
    return None  # settled when the processes met
  wanted = cores() if devices == 'auto' else int(devices)
  if 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', ''):
    return 'XLA_FLAGS sets the number of host devices: it is left as it is'
  try:
    jax.config.update('jax_num_cpu_devices', wanted)
  except RuntimeError:  # jax has started: the number can no longer be set
    there = len(jax.devices())
    if there < wanted or (there > wanted and devices == 'auto'):
      return f'jax had started already: using its {there} device(s), not {wanted}'
  return None


def start() -> None:
  """Starts jax.

  Raises:
    ValueError: the platform that the user asked for has no devices here.
  """
  try:
    jax.devices()
  except Exception as error:  # jax raises several errors for a missing platform, some are empty
    chosen = jax.config.values['jax_platforms']
    reason = str(error) or 'there is none'
    raise ValueError(
      f'JAX_PLATFORMS must name a platform with devices here, got {chosen!r} ({reason}): unset it, '
      'or see `fedjax-mem doctor`.'
    ) from error


def forget_compiled() -> None:
  """Turns the cache of compiled programs off, for this process: `fedjax-mem run --no-cache`."""
  jax.config.update('jax_enable_compilation_cache', False)


def _keep_compiled() -> None:
  """Turns jax's persistent compilation cache on, unless the user has set or disabled it."""
  settings = jax.config.values
  if settings['jax_compilation_cache_dir'] is None and settings['jax_enable_compilation_cache']:
    jax.config.update('jax_compilation_cache_dir', str(cache_folder() / 'compiled'))
    # Programs that take less than a second, too: the next start would wait for all of them.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
