"""Runs that start from given parameters, and the file of parameters that a run leaves."""

import json
import shutil

import jax
import numpy as np
import pytest

import fedjax_mem as fm
from fedjax_mem.models import saved
from fedjax_mem.runner import loop
from fedjax_mem.runner.folder import RunFolder


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def manifest(folder):
  return json.loads((folder / 'manifest.json').read_text())


@pytest.fixture
def first(make, tmp_path, undrawn):
  return fm.run(make('rounds=1'), tmp_path / 'first', quiet=True)


@pytest.mark.slow
def test_a_run_starts_from_a_run_or_from_arrays(make, first, tmp_path, undrawn):
  equal(saved.fitted(saved.read(first.folder), first.params, 'it'), first.params)
  config = make('rounds=1', f'model.init={first.folder}')
  second = fm.run(config, tmp_path / 'second', quiet=True)
  again = fm.run(make('rounds=1'), tmp_path / 'second', params=first.params, quiet=True)
  assert again.folder.name == f'{second.folder.name}-2'  # one experiment, by its hash
  equal(again.params, second.params)
  assert (np.asarray(second.params['logits']['bias']) != first.params['logits']['bias']).all()
  sha = saved.digest(saved.arrays(first.params))
  assert manifest(second.folder)['init'] == {'from': str(first.folder), 'sha256': sha}
  assert manifest(again.folder)['init'] == {'from': 'params', 'sha256': sha}
  assert 'init' not in manifest(first.folder)


@pytest.mark.slow
def test_a_run_keeps_what_it_starts_from(make, first, tmp_path, monkeypatch, undrawn):
  given = tmp_path / 'given.safetensors'
  shutil.copy(first.folder / saved.FINAL, given)
  config = make('rounds=1', f'model.init={given}')
  whole = fm.run(config, tmp_path / 'whole', quiet=True)
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(loop, 'facts', lambda ready: (_ for _ in ()).throw(KeyboardInterrupt))
    fm.run(config, tmp_path / 'killed', quiet=True)
  given.unlink()
  (folder,) = (tmp_path / 'killed').iterdir()
  kept = folder / 'init.safetensors'
  sound = kept.read_bytes()
  saved.write(kept, jax.tree.map(lambda x: x + 1, first.params))
  with pytest.raises(ValueError, match=r'init.safetensors must hold what the run began with'):
    fm.resume(folder, quiet=True)
  kept.write_bytes(sound)
  equal(fm.resume(folder, quiet=True).params, whole.params)
  assert RunFolder(folder).config.model.init == str(given)


@pytest.mark.slow
def test_lanes_of_a_sweep_start_from_it_too(make, first, tmp_path, undrawn):
  config = make('rounds=1', f'model.init={first.folder}')
  grid = {'client.learning_rate': [0.1, 0.2]}
  # One after another: side by side, the last bits differ.
  swept = fm.sweep(config, grid, seeds=(0,), out=tmp_path / 'sweep', at_once=1, quiet=True)
  alone = fm.run(make('rounds=1', 'client.learning_rate=0.2'), tmp_path, params=first.params)
  lane = swept.lanes[1].folder
  assert lane.name == alone.folder.name
  equal(saved.fitted(saved.read(lane), alone.params, 'it'), alone.params)
