"""How tests compile: without most optimizations, and once for all processes of all runs."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import jax
import jaxlib
from jax._src.lru_cache import LRUCache

# Compiling is nearly all that the tests do. These halve it, where jaxlib is known to know them: an
# unknown flag would end the process.
_ONE_PART = '--xla_cpu_parallel_codegen_split_count=1'
QUICK = {
  ('0', '10'): f'{_ONE_PART} --xla_cpu_use_fusion_emitters=false',
  ('0', '12'): _ONE_PART,
}


def quickly() -> None:
  """Has XLA compile without most of its optimizations, unless the user has flags of his own."""
  jax.config.update('jax_disable_most_optimizations', True)
  flags = QUICK.get(tuple(jaxlib.__version__.split('.')[:2]))
  if flags:
    os.environ.setdefault('XLA_FLAGS', flags)


def cache_folder() -> Path:
  """Returns where compiled programs are kept from one run of the tests to the next."""
  own = os.environ.get('FEDJAX_MEM_CACHE')
  base = Path(own) if own else Path.home() / '.cache' / 'fedjax_mem'
  # By the flags: jax does not make them part of an entry's name once they are gone.
  flags = hashlib.sha256(os.environ.get('XLA_FLAGS', '').encode()).hexdigest()[:8]
  return base / 'tests' / flags


def shared(folder: Path) -> None:
  """Keeps compiled programs in a folder that several processes may write at once."""
  settings = {
    'jax_compilation_cache_dir': str(folder),
    'jax_persistent_cache_min_compile_time_secs': 0.1,
    'jax_persistent_cache_min_entry_size_bytes': -1,
  }
  for name, value in settings.items():
    jax.config.update(name, value)
  LRUCache.put = put_whole


def put_whole(cache: LRUCache, key: str, value: bytes) -> None:
  """Adds an entry under its name once all of it is written: jax writes it in place.

  Another process would read the half that is there, and one that is killed would leave it so.
  """
  path = Path(str(cache.path)) / f'{key}-cache'
  if path.exists():
    return
  handle, name = tempfile.mkstemp(dir=path.parent, prefix='.entry-')
  try:
    with open(handle, 'wb') as file:
      file.write(value)
    os.replace(name, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(name)
    raise
