"""The cache of compiled programs that all processes of all test runs share."""

import os
import threading

import jax
import jax.numpy as jnp
import pytest
from jax._src.lru_cache import LRUCache
from reference import compiling

SIZE = 1 << 22


@pytest.mark.slow
def test_an_entry_is_there_as_a_whole_or_not_at_all(tmp_path):
  """Several write, as processes do, and one reads."""
  caches = [LRUCache(str(tmp_path), max_size=-1) for _ in range(3)]
  keys = [f'program{i}' for i in range(30)]

  def write(cache):
    for key in keys:
      cache.put(key, key[-1].encode() * SIZE)

  writers = [threading.Thread(target=write, args=(cache,)) for cache in caches]
  for writer in writers:
    writer.start()
  seen = 0
  while any(writer.is_alive() for writer in writers):
    for key in keys:
      found = caches[0].get(key)
      seen += found is not None
      assert found is None or (len(found) == SIZE and set(found) == {ord(key[-1])})
  assert seen
  assert sorted(os.listdir(tmp_path)) == sorted(f'{key}-cache' for key in keys)


def test_an_entry_gets_its_name_once_it_is_written(tmp_path, monkeypatch):
  """jax's own `put` writes under that name, where a reader or a kill meets a part of it."""
  seen = []
  replace = os.replace

  def watching(source, target):
    seen.append((os.path.exists(target), os.path.getsize(source)))
    replace(source, target)

  monkeypatch.setattr(os, 'replace', watching)
  cache = LRUCache(str(tmp_path), max_size=-1)
  cache.put('program', bytes(SIZE))
  assert seen == [(False, SIZE)]
  assert cache.get('program') == bytes(SIZE)


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
  def full(*args):
    raise OSError(28, 'No space left on device')

  cache = LRUCache(str(tmp_path), max_size=-1)
  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(OSError, match='No space left'):
    cache.put('program', b'bytes')
  assert os.listdir(tmp_path) == [] and cache.get('program') is None


def test_the_tests_use_it(compilations):
  """The second process of a run, and the next run, read what the first has compiled."""
  assert jax.config.jax_compilation_cache_dir.split(os.sep)[-2] == 'tests'
  assert LRUCache.put is compiling.put_whole
  jax.jit(lambda x: x + 1)(jnp.float32(1))
  assert any('backend_compile' in x for x in compilations)
