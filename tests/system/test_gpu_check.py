"""The check of an accelerator in its small form; what fails or is stopped leaves the rest."""

import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
from reference import compiling

from benchmarks import gpu_check, gpu_kit, gpu_parts, works

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_all_parts_run_in_their_small_form(tmp_path):
  # No examples are prepared there: those that are drawn in their place are enough.
  own = {'HOME': str(tmp_path), 'PYTHON': sys.executable, 'WHEELS': str(tmp_path)}
  kept = {
    'JAX_COMPILATION_CACHE_DIR': str(compiling.cache_folder()),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',  # as tests compile, see `compiling.quickly`
  }
  command = [str(ROOT / 'benchmarks' / 'gpu_check.sh'), str(tmp_path / 'out')]
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', **own, **kept}
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'no accelerator: small shapes' in done.stdout and 's in all' in done.stdout
  told = json.loads((tmp_path / 'out' / 'summary.json').read_text())
  assert told['platform'] == 'cpu' and told['seconds'] > 0
  assert list(told['parts']) == list(gpu_parts.PARTS)
  for name, part in told['parts'].items():
    assert part == json.loads((tmp_path / 'out' / f'{name}.json').read_text())
    assert part['complete'] and part['small'], (name, done.stdout)
    failed = {item: x['failed'] for item, x in part.get('items', {}).items() if 'failed' in x}
    assert failed == {} and (name == 'peers' or 'left_out' not in part)
  items = {name: part.get('items', {}) for name, part in told['parts'].items()}
  assert {item: x['equal'] for item, x in items['engine'].items() if item != 'cpu'} == {
    'W3 vmap': True, 'W3 loop': True
  }  # fmt: skip
  assert sorted(items['works']) == sorted(works.WORKS)
  assert all(x['finite'] and x['mfu'] > 0 for x in items['works'].values())
  assert all(x['share'] > 0 for x in items['kernels'].values())
  assert all(platform == 'cpu' for platform, _, _ in told['parts']['conv']['rows'])


def test_what_fails_or_has_no_time_leaves_the_rest(tmp_path, capsys):
  def broken():
    raise MemoryError('no room')

  part = gpu_kit.Part('works', True, 0.5, tmp_path / 'works.json')
  slow = lambda: time.sleep(0.6) or {'median_s': 2.0}
  part.items({'W1': broken, 'W2': lambda: {'median_s': 1.0}, 'W3': slow, 'W4': broken})
  stopped = json.loads((tmp_path / 'works.json').read_text())
  assert stopped['items']['W1']['failed'] == 'MemoryError: no room'
  assert stopped['items']['W2']['median_s'] == 1.0 and stopped['items']['W3']['median_s'] == 2.0
  assert stopped['left_out'] == ['W4'] and not stopped['complete']
  part.end()
  peer = gpu_kit.Part('peers', True, 1.0, tmp_path / 'peers.json')
  peer.items({'W2 one by one': lambda: {'median_s': 3.0}})
  told = gpu_check.summary(tmp_path, 12.0)
  assert told['parts']['works']['complete'] and told['parts']['engine'] is None
  printed = capsys.readouterr().out
  assert 'peers: stopped' in printed and 'engine: nothing' in printed
  assert 'PyTorch W2 one by one: 3.00 x our time' in printed and 'left out: W4' in printed


def test_the_table_of_convolutions_takes_the_faster():
  layers = [(4, 2.0, 1.0), (8, 1.0, 9.0), (8, 5.0, 1.0), (16, 3.0, 1.0), (32, 1.0, 2.0)]
  found = [(channels, {'lax': lax, 'gemm': gemm}) for channels, lax, gemm in reversed(layers)]
  # Of 8 channels lax takes 6 ms in all, gemm 10.
  assert gpu_parts.rows('gpu', found) == [
    ['gpu', 4, 'gemm'], ['gpu', 8, 'lax'], ['gpu', 16, 'gemm'], ['gpu', None, 'lax']
  ]  # fmt: skip
  assert gpu_parts.rows('gpu', []) == []
