"""What is settled before jax starts."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from fedjax_mem.runner import devices

THERE = jax.config.jax_num_cpu_devices  # of this process


def fresh(code: str, **env) -> str:
  """Runs code in a process where jax has not started; returns what it prints."""
  ours = ('JAX_COMPILATION_CACHE_DIR', 'XLA_FLAGS')
  plain = {name: x for name, x in os.environ.items() if name not in ours}
  return subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True,
    cwd=Path(__file__).parents[3], env={**plain, 'JAX_PLATFORMS': 'cpu', **env},
  ).stdout.strip()  # fmt: skip


CODE = """
import jax
from fedjax_mem.runner import devices
note = devices.prepare({asked!r})
print(len(jax.devices()), '|', note, '|', jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.slow
def test_a_new_process_has_as_many_devices_as_asked_for(tmp_path):
  count, note, cache = fresh(CODE.format(asked=3), FEDJAX_MEM_CACHE=str(tmp_path)).split(' | ')
  assert (count, note) == ('3', 'None')
  assert cache == str(tmp_path / 'compiled')


@pytest.mark.slow
def test_auto_is_one_device_a_core():
  count, note, _ = fresh(CODE.format(asked='auto')).split(' | ')
  assert (int(count), note) == (devices.cores(), 'None')


@pytest.mark.slow
def test_xla_flags_of_the_user_are_left_alone():
  flags = '--xla_force_host_platform_device_count=5'
  count, note, _ = fresh(CODE.format(asked=2), XLA_FLAGS=flags).split(' | ')
  assert count == '5' and 'XLA_FLAGS' in note


@pytest.mark.slow
def test_a_compilation_cache_of_the_user_is_left_alone(tmp_path):
  out = fresh(CODE.format(asked=1), JAX_COMPILATION_CACHE_DIR=str(tmp_path / 'mine'))
  assert out.endswith('mine')


RUN = """
import contextlib, io, sys
import jax
from fedjax_mem.cli import main
from fedjax_mem.report import tracker
seen = []
count = lambda event, **_: seen.append(event.rsplit('/', 1)[1])
jax.monitoring.register_event_listener(count)
write = tracker.MetricsWriter.write
def first(self, record):
  if record['round'] == 1:
    slow = [x for x in ('matplotlib', 'flax.nnx', 'sklearn', 'orbax') if x in sys.modules]
    misses, hits = (seen.count(f'cache_{{x}}') for x in ('misses', 'hits'))
    print(misses, hits, slow, file=sys.__stdout__)
  write(self, record)
tracker.MetricsWriter.write = first
short = ['--set', 'rounds=1', '--set', 'data.num_clients=10']
given = ['configs/quickstart.toml', '--quiet', '--out', {out!r}, *short, *{more!r}]
with contextlib.redirect_stdout(io.StringIO()):
  code = main.main(['run', *given])
assert code == 0
"""


def _first_round(cache: Path, out: Path, *more: str) -> tuple[int, int, str]:
  """Returns (cache misses, hits, slow modules imported) of a run up to its first record."""
  code = RUN.format(out=str(out), more=list(more))
  said = fresh(code, FEDJAX_MEM_CACHE=str(cache)).splitlines()[0]
  misses, hits, slow = said.split(' ', 2)
  return int(misses), int(hits), slow


@pytest.mark.slow
def test_a_second_start_compiles_nothing_and_imports_nothing_slow(tmp_path):
  cache = tmp_path / 'cache'
  misses, _, slow = _first_round(cache, tmp_path / 'one')
  assert misses > 3 and slow == '[]'
  again, hits, _ = _first_round(cache, tmp_path / 'two')
  assert again == 0 and hits >= misses
  nothing = tmp_path / 'nothing'
  assert _first_round(nothing, tmp_path / 'three', '--no-cache')[:2] == (0, 0)
  assert not (nothing / 'compiled').exists()


@pytest.mark.slow
def test_a_platform_that_is_not_here_is_one_clear_error():
  code = (
    'from fedjax_mem.runner import devices\n'
    "devices.prepare('auto')\n"
    'try:\n  devices.start()\nexcept ValueError as error:\n  print(error)\n'
  )
  said = fresh(code, JAX_PLATFORMS='no_such')
  assert said.startswith("JAX_PLATFORMS must name a platform with devices here, got 'no_such'")


@pytest.mark.parametrize(
  ('asked', 'cores', 'words'),
  [
    (THERE, 2, None),
    (THERE - 1, 2, None),  # more are there, so it gets its own
    ('auto', THERE, None),
    ('auto', THERE - 1, f'using its {THERE} device(s), not {THERE - 1}'),
    (THERE + 1, 2, f'using its {THERE} device(s), not {THERE + 1}'),
  ],
)
def test_once_jax_has_started_its_devices_are_named(monkeypatch, asked, cores, words):
  assert len(jax.devices()) == THERE
  monkeypatch.setattr(devices, 'cores', lambda: cores)
  note = devices.prepare(asked)
  assert note is None if words is None else words in note


def test_the_cache_folder_is_the_users(monkeypatch, tmp_path):
  monkeypatch.setenv('FEDJAX_MEM_CACHE', str(tmp_path))
  assert devices.cache_folder() == tmp_path
  monkeypatch.delenv('FEDJAX_MEM_CACHE')
  monkeypatch.setenv('HOME', '/home/someone')
  assert devices.cache_folder() == Path('/home/someone/.cache/fedjax_mem')
