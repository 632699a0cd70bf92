"""What a run has trained, read from a copy of its folder in a fresh process."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import fedjax_mem as fm
from fedjax_mem.cli import main as cli
from fedjax_mem.models import saved

FACTORIES = """
import flax.linen as nn
import jax
from flax import nnx

from fedjax_mem import models


def linen(input_shape, num_classes):
  class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(num_classes)(x.reshape(x.shape[0], -1))

  return models.from_linen(Flat(), input_shape, num_classes)


class Flat(nnx.Module):
  def __init__(self, rngs):
    self.dense = nnx.Linear(64, 10, rngs=rngs)

  def __call__(self, x):
    return self.dense(x.reshape(x.shape[0], -1))


def of_nnx(input_shape, num_classes):
  return models.from_nnx(Flat, input_shape, num_classes)


def functions(input_shape, num_classes):
  init = lambda key: 0.1 * jax.random.normal(key, (64, num_classes))
  return models.from_functions(
    init, lambda w, x: x.reshape(x.shape[0], -1) @ w, input_shape, num_classes
  )
"""
# Prints the bits of the logits of a run's model.
READ = """
import sys, jax, numpy as np, fedjax_mem as fm
loaded = fm.load(sys.argv[1])
x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
print(loaded.round, np.asarray(loaded.model.apply(loaded.params, x)).tobytes().hex())
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
  folder = tmp_path / 'modules'
  folder.mkdir()
  (folder / 'my_models.py').write_text(FACTORIES)
  monkeypatch.syspath_prepend(folder)
  return folder


def logits(result, name):
  model = fm.load(result.folder).model
  x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
  return np.asarray(model.apply(result.params, x)).tobytes().hex()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['linen', 'of_nnx', 'functions'])
def test_a_copy_gives_the_same_bits_in_a_fresh_process(make, tmp_path, factories, undrawn, name):
  config = make('rounds=2', f'model.name=my_models:{name}')
  result = fm.run(config, tmp_path / 'runs', quiet=True)
  copy = tmp_path / 'elsewhere' / 'copy'
  shutil.copytree(result.folder, copy)
  wanted = f'2 {logits(result, name)}'
  shutil.rmtree(result.folder)
  command = [sys.executable, '-c', READ, str(copy)]
  path = {'PYTHONPATH': f'{factories}:{":".join(sys.path[:3])}', 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(command, env=path, capture_output=True, text=True)
  assert done.stdout.strip() == wanted, done.stderr
  del path['PYTHONPATH']
  package = str(pathlib.Path(fm.__file__).parents[1])  # where the modules are not
  lost = subprocess.run(command, env=path, capture_output=True, text=True, cwd=package)
  assert 'ValueError: model.name must' in lost.stderr and 'my_models' in lost.stderr, lost.stderr


@pytest.mark.slow
def test_formats_hold_the_parameters_and_no_secret(make, tmp_path, monkeypatch, undrawn, capsys):
  stage = 'stages=[{use="central", options={l2_clip_norm=1.0, noise_multiplier=1.0}}]'
  weights = ('weighting.name=equal', 'weighting.options={divisor=4}', 'privacy.delta=1e-5')
  result = fm.run(make('rounds=1', stage, *weights), tmp_path / 'runs', quiet=True)
  root = (result.folder / 'noise.key').read_text().split()[0]
  monkeypatch.chdir(tmp_path)
  for kind, suffix in saved.FORMATS.items():
    assert cli.main(['export', str(result.folder), '--format', kind]) == 0
    path = tmp_path / (result.folder.name + (suffix or '-orbax'))
    held = saved.read(path)
    assert saved.digest(held) in capsys.readouterr().out
    back = saved.fitted(held, result.params, 'it')
    jax.tree.map(np.testing.assert_array_equal, back, result.params)
    for file in [path] if path.is_file() else [x for x in path.rglob('*') if x.is_file()]:
      for secret in (root.encode(), bytes.fromhex(root), bytes.fromhex(root)[::-1]):
        assert secret not in file.read_bytes()
  assert cli.main(['export', str(result.folder), '--out', 'x.msgpack']) == 2
  assert "out must end in '.safetensors'" in capsys.readouterr().err


@pytest.mark.slow
def test_an_unfinished_run_gives_its_newest_checkpoint(make, tmp_path, undrawn):
  class Stop(fm.Tracker):
    def checkpoint(self, round):
      if round == 2:
        raise KeyboardInterrupt

  stops = ('execution.checkpoint_every_seconds=0', 'execution.max_segment_rounds=1')
  with pytest.raises(KeyboardInterrupt):
    fm.run(make('rounds=4', *stops), tmp_path / 'a', trackers=[Stop()], quiet=True)
  (folder,) = (tmp_path / 'a').iterdir()
  whole = fm.run(make('rounds=2', *stops), tmp_path / 'b', quiet=True)
  # As if another process were writing the next one, or had died at its end.
  half = folder / 'checkpoints' / '3.orbax-checkpoint-tmp'
  half.mkdir()
  saved.write(folder / saved.FINAL, jax.tree.map(lambda x: x + 1, whole.params))
  loaded = fm.load(folder)
  assert loaded.round == 2 and half.is_dir()
  jax.tree.map(np.testing.assert_array_equal, loaded.params, whole.params)
  shutil.rmtree(folder / 'checkpoints')
  with pytest.raises(RuntimeError, match='no sound checkpoint'):
    fm.load(folder)
  manifest = json.loads((folder / 'manifest.json').read_text())
  del manifest['model']
  (folder / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match='must say the shapes of the model, got none'):
    fm.load(folder)
