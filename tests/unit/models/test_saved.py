"""Parameters in files: every format, and what does not fit by name."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem import models
from fedjax_mem.models import saved

MODEL = models.build('mlp', (4,), 3, hidden=(5,))
LIKE = jax.eval_shape(MODEL.init, jax.random.key(0))


@pytest.fixture(scope='module')
def params():
  return jax.device_get(MODEL.init(jax.random.key(1)))


@pytest.mark.parametrize('suffix', saved.FORMATS.values())
def test_each_format_gives_back_the_bits_and_nothing_else_is_left(tmp_path, params, suffix):
  path = tmp_path / 'new' / f'model{suffix}'
  saved.write(path, params, {'round': '3'})
  assert [x.name for x in path.parent.iterdir()] == [path.name]
  held = saved.read(path)
  assert sorted(held) == ['hidden_0/bias', 'hidden_0/kernel', 'logits/bias', 'logits/kernel']
  back = saved.fitted(held, LIKE, 'it')
  jax.tree.map(np.testing.assert_array_equal, back, params)
  assert jax.tree.structure(back) == jax.tree.structure(params)
  assert saved.digest(held) == saved.digest(saved.arrays(params))


def test_other_libraries_read_the_files(tmp_path, params):
  from flax import serialization
  from safetensors import safe_open

  saved.write(tmp_path / 'm.msgpack', params)
  flax = serialization.from_bytes(params, (tmp_path / 'm.msgpack').read_bytes())
  jax.tree.map(np.testing.assert_array_equal, flax, params)
  saved.write(tmp_path / 'm.safetensors', params, {'round': '3'})
  with safe_open(tmp_path / 'm.safetensors', framework='numpy') as file:
    assert file.metadata() == {'round': '3'}
    np.testing.assert_array_equal(file.get_tensor('logits/kernel'), params['logits']['kernel'])


def test_arrays_of_any_tree(tmp_path):
  like = (
    jnp.ones((2, 2), jnp.bfloat16),
    {'list': [jnp.float32(3), np.arange(6, dtype=np.float32).reshape(2, 3).T]},
  )
  for suffix in saved.FORMATS.values():
    saved.write(tmp_path / f'm{suffix}', like)
    back = saved.fitted(saved.read(tmp_path / f'm{suffix}'), like, 'it')
    assert jax.tree.structure(back) == jax.tree.structure(like)
    jax.tree.map(np.testing.assert_array_equal, back, like)
  saved.write(tmp_path / 'one.msgpack', jnp.ones(3))
  assert saved.read(tmp_path / 'one.msgpack')['params'].tolist() == [1, 1, 1]
  with pytest.raises(ValueError, match="one array at each path, got two at 'a/b'"):
    saved.arrays({'a/b': np.ones(1), 'a': {'b': np.ones(1)}})


def test_the_hash_is_of_names_values_shapes_and_dtypes():
  x = np.arange(4, dtype=np.float32)
  others = ({'b': x}, {'a': x + 1}, {'a': x.reshape(2, 2)}, {'a': x.view(np.int32)})
  assert len({saved.digest(y) for y in ({'a': x}, *others)}) == 5
  assert saved.digest({'a': x, 'b': x + 1}) == saved.digest({'b': x + 1, 'a': x})


def test_what_does_not_fit_is_named_by_its_path(params):
  held = saved.arrays(params)
  held['hidden_0/kernl'] = held.pop('hidden_0/kernel')
  held['hidden_0/bias'] = np.ones(3, np.float32)
  held['logits/bias'] = np.full(3, np.nan, np.float32)
  held['logits/kernel'] = held['logits/kernel'].astype(np.int32)
  with pytest.raises(ValueError, match=r'^m\.msgpack must hold the arrays of the model: ') as error:
    saved.fitted(held, LIKE, 'm.msgpack')
  for words in (
    "'hidden_0/kernel' is missing",
    "'hidden_0/kernl' is not of the model (Did you mean 'hidden_0/kernel'?)",
    "'hidden_0/bias' is (3,), the model has (5,)",
    "'logits/bias' has values that are not finite",
    "'logits/kernel' is int32, the model has float32",
  ):
    assert words in str(error.value)
  wide = {name: x.astype(np.float64) for name, x in saved.arrays(params).items()}
  jax.tree.map(np.testing.assert_array_equal, saved.fitted(wide, LIKE, 'it'), params)


def test_what_cannot_be_read_or_written(tmp_path, params):
  (tmp_path / 'bad.safetensors').write_bytes(b'abc')
  (tmp_path / 'bad.msgpack').write_bytes(b'\xc1')
  (tmp_path / 'bad').mkdir()
  (tmp_path / 'params.npz').write_bytes(b'')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'manifest.json').write_text('{}')
  for name, words in (
    ('bad.safetensors', 'bad.safetensors must hold parameters, got what cannot be read'),
    ('bad.msgpack', 'bad.msgpack must hold parameters, got what cannot be read'),
    ('bad', 'bad must hold parameters, got what cannot be read'),
    ('params.npz', r"must end in .safetensors or .msgpack, or be a folder, got .*'params.npz'"),
    ('gone.msgpack', 'gone.msgpack must be a file of parameters or a run, got .* nothing is'),
    ('run', 'must be a run that has ended, with params.safetensors, .* `fedjax-mem export'),
  ):
    with pytest.raises(ValueError, match=words):
      saved.read(tmp_path / name)
  with pytest.raises(ValueError, match='must be a path where nothing is, got a folder'):
    saved.write(tmp_path / 'bad', params)
  with pytest.raises(ValueError, match='must be writable'):
    saved.write(tmp_path / 'params.npz' / 'm.msgpack', params)
  assert not list(pathlib.Path(tmp_path).glob('.*'))
