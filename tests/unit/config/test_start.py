"""Parameters that are given: their hash, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem import models
from fedjax_mem.config import build, start
from fedjax_mem.config.load import config_hash
from fedjax_mem.models import saved

PARAMS = models.build('logistic', (8, 8, 1), 10).init(jax.random.key(7))


@pytest.fixture
def file(tmp_path):
  saved.write(tmp_path / 'start.safetensors', PARAMS)
  return tmp_path / 'start.safetensors'


def test_nothing_given_changes_nothing(make):
  config = make()
  assert start.pinned(config) == (config, None)


def test_the_hash_is_of_what_is_given_and_not_of_where_it_is(make, file, tmp_path):
  given = make(f'model.init={file}')
  config, held = start.pinned(given)
  assert config.model.init_hash == saved.digest(saved.arrays(PARAMS)) == saved.digest(held)
  saved.write(tmp_path / 'elsewhere', PARAMS)
  elsewhere = make(f'model.init={tmp_path / "elsewhere"}')
  by_hand = start.pinned(make(), PARAMS)[0]
  hashes = [config_hash(x) for x in (given, config, elsewhere, by_hand)]
  assert len(set(hashes)) == 1 and hashes[0] != config_hash(make())
  saved.write(file, jax.tree.map(lambda x: x + 1, PARAMS))
  assert config_hash(given) not in hashes
  with pytest.raises(ValueError, match=r'hash is model.init_hash = .*: it has changed since'):
    start.pinned(config)
  assert config_hash(config) == hashes[0]  # of a run that has its own copy


def test_the_parts_start_from_it(make, file):
  parts = build.build(make(f'model.init={file}'))
  jax.tree.map(np.testing.assert_array_equal, parts.params, PARAMS)
  jax.tree.map(
    np.testing.assert_array_equal, build.build(make(), start=saved.arrays(PARAMS)).params, PARAMS
  )
  with pytest.raises(ValueError, match=r"model.init must hold .* 'logits/kernel' is \(64, 10\)"):
    build.build(make(f'model.init={file}', 'model.name=mlp'))


def test_bad_input(make, file, tmp_path):
  config = make(f'model.init={file}')
  with pytest.raises(ValueError, match=r'params must be left out beside model.init, got both'):
    start.pinned(config, PARAMS)
  with pytest.raises(ValueError, match=r'model.init: .*gone must be a file of parameters or a run'):
    config_hash(make(f'model.init={tmp_path / "gone"}'))
  lost = dataclasses.replace(start.pinned(config)[0].model, init=None)
  with pytest.raises(ValueError, match=r'model.init must be where the arrays of model.init_hash'):
    build.build(dataclasses.replace(config, model=lost))
  for text, words in (
    ('model.init_hash=abc', 'model.init_hash must be 64 hexadecimal digits'),
    ('model.init=" "', 'model.init must be a path'),
  ):
    with pytest.raises(ValueError, match=words):
      make(text)
  assert jnp.isfinite(PARAMS['logits']['bias']).all()
