"""The published models: parameter counts, equality with plain flax, loss and metrics."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem import models
from fedjax_mem.models import base

COUNTS = [
  ('logistic', (28, 28, 1), 10, {}, 7_850),
  ('mlp', (784,), 10, {}, 199_210),
  ('cnn', (28, 28, 1), 62, {}, 1_206_590),
  ('cnn', (28, 28, 1), 62, {'dropout': True}, 1_206_590),
  ('cnn_mcmahan', (28, 28, 1), 10, {}, 1_663_370),
  ('lenet', (28, 28, 1), 10, {}, 44_426),
  ('char_lstm', (80,), 90, {}, 820_522),
  # torchvision's resnet18 has 11,689,512 for 1,000 classes, 11,220,132 for 100; the stem's window
  # is 3 x 3 instead of 7 x 7 here: 40 * 3 * 64 fewer.
  ('resnet_gn', (32, 32, 3), 100, {}, 11_227_812 - 40 * 3 * 64),
]


def _size(params):
  return sum(x.size for x in jax.tree.leaves(params))


def _batch(shape, classes, size=3, tokens=False):
  rng = np.random.default_rng(0)
  if tokens:
    rows = rng.integers(1, classes, (size, shape[0] + 1))
    return {'x': jnp.asarray(rows[:, :-1], jnp.int32), 'y': jnp.asarray(rows[:, 1:], jnp.int32)}
  x = jnp.asarray(rng.uniform(size=(size, *shape)), jnp.float32)
  return {'x': x, 'y': jnp.asarray(rng.integers(0, classes, size), jnp.int32)}


@pytest.mark.parametrize('name, shape, classes, options, count', COUNTS)
def test_parameter_counts(name, shape, classes, options, count):
  model = models.build(name, shape, classes, **options)
  params = jax.eval_shape(model.init, jax.random.key(0))
  assert _size(params) == count
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  assert model.input_shape == shape and model.num_classes == classes and model.name == name


@pytest.mark.slow
@pytest.mark.parametrize('name, shape, options', [('cnn', (28, 28, 1), {}), ('mlp', (64,), {})])
def test_initial_parameters_are_the_same_in_any_program(name, shape, options):
  """A program of their own, which is compiled in haste, changes no bit."""
  model, key = models.build(name, shape, 10, **options), jax.random.key(3)
  own, within = model.init(key), jax.jit(lambda key: model.init(key))(key)
  chex.assert_trees_all_equal(own, within)


SMALL = [
  ('logistic', (5,), {}),
  ('mlp', (4, 3), {'hidden': [6]}),
  ('cnn', (10, 9, 2), {}),
  ('cnn', (10, 9, 2), {'norm': 'group', 'groups': 4}),
  ('cnn_mcmahan', (8, 8, 1), {}),
  ('lenet', (16, 16, 1), {}),
  ('char_lstm', (6,), {'embedding': 3, 'width': 5}),
  ('resnet_gn', (8, 8, 3), {'blocks': [1, 1], 'width': 4}),
]


@pytest.mark.first(1)
@pytest.mark.parametrize('name, shape, options', SMALL)
def test_every_model_learns_a_batch(name, shape, options):
  model = models.build(name, shape, 7, **options)
  batch = _batch(shape, 7, tokens=name == 'char_lstm')
  objective = lambda p: model.loss(p, batch).mean()

  @jax.jit
  def step(params):
    value, gradient = jax.value_and_grad(objective)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), value

  params = jax.jit(model.init)(jax.random.key(0))
  before = jax.jit(model.metrics)(params, batch)
  params, first = step(params)
  for _ in range(10):
    params, last = step(params)
  assert np.isfinite(last) and last < first
  assert before['loss'].shape == before['accuracy'].shape == (3,)
  np.testing.assert_allclose(before['loss'].mean(), first, rtol=1e-5)


@pytest.mark.slow
def test_the_key_of_init_decides():
  init = jax.jit(models.build('lenet', (16, 16, 1), 7).init)
  first, again, other = (init(jax.random.key(seed)) for seed in (0, 0, 1))
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert all(
    (a != b).any() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
  )


class _Plain(nn.Module):
  """A convolutional net of plain flax layers in NHWC, to take the parameters of ours."""

  convolutions: tuple
  hidden: tuple
  padding: str
  pools: tuple

  @nn.compact
  def __call__(self, x):
    for i, (features, window) in enumerate(self.convolutions):
      x = nn.Conv(features, (window, window), padding=self.padding, name=f'conv_{i}')(x)
      x = nn.relu(x)
      if i in self.pools:
        x = nn.max_pool(x, (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    for name, width in self.hidden:
      x = nn.Dense(width, name=name)(x)
      x = x if name == 'logits' else nn.relu(x)
    return x


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, plain',
  [
    ('cnn', _Plain(((32, 3), (64, 3)), (('dense', 128), ('logits', 10)), 'VALID', (1,))),
    ('cnn_mcmahan', _Plain(((32, 5), (64, 5)), (('dense', 512), ('logits', 10)), 'SAME', (0, 1))),
    (
      'lenet',
      _Plain(
        ((6, 5), (16, 5)), (('dense_0', 120), ('dense_1', 84), ('logits', 10)), 'VALID', (0, 1)
      ),
    ),
  ],
)
def test_convolutional_models_equal_plain_flax(name, plain):
  model, batch = models.build(name, (28, 28, 1), 10), _batch((28, 28, 1), 10, 4)
  params = jax.jit(model.init)(jax.random.key(1))
  reference = lambda p: base.cross_entropy(plain.apply({'params': p}, batch['x']), batch['y'])
  ours = lambda p: model.loss(p, batch).mean()
  value, actual = jax.jit(jax.value_and_grad(ours))(params)
  wanted, expected = jax.jit(jax.value_and_grad(lambda p: reference(p).mean()))(params)
  np.testing.assert_allclose(value, wanted, rtol=1e-5)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert np.linalg.norm(a - e) <= 1e-5 * np.linalg.norm(e)


@pytest.mark.slow
def test_group_norm_equals_flax():
  from fedjax_mem.models import layers

  x = jnp.asarray(np.random.default_rng(0).normal(2, 3, size=(5, 4, 3, 6)), jnp.float32)
  variables = layers.GroupNorm(3).init(jax.random.key(0), x)
  expected = nn.GroupNorm(3, epsilon=1e-5).apply(variables, x.transpose(2, 0, 1, 3))
  actual = layers.GroupNorm(3).apply(variables, x).transpose(2, 0, 1, 3)
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  with pytest.raises(ValueError, match='groups must divide'):
    layers.GroupNorm(4).init(jax.random.key(0), x)


@pytest.mark.slow
def test_lstm_equals_numpy():
  model = models.build('char_lstm', (5,), 4, embedding=2, width=3)
  params = model.init(jax.random.key(0))
  tokens = np.array([[1, 2, 3, 0, 1], [3, 3, 2, 1, 0]])
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  sigmoid = lambda z: 1 / (1 + np.exp(-z))
  x = p['embedding'][tokens]
  for layer in ('lstm_0', 'lstm_1'):
    q, hidden, cell, outputs = p[layer], np.zeros((2, 3)), np.zeros((2, 3)), []
    for t in range(5):
      gates = x[:, t] @ q['kernel'] + hidden @ q['recurrent'] + q['bias']
      i, f, g, o = np.split(gates, 4, axis=1)
      cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
      hidden = sigmoid(o) * np.tanh(cell)
      outputs.append(hidden)
    x = np.stack(outputs, 1)
  expected = x @ p['logits']['kernel'] + p['logits']['bias']
  np.testing.assert_allclose(model.apply(params, jnp.asarray(tokens)), expected, atol=1e-6)
  assert p['lstm_0']['bias'].tolist() == [0] * 3 + [1] * 3 + [0] * 6


@pytest.mark.slow
def test_padding_does_not_count():
  model = models.build('char_lstm', (4,), 5, embedding=2, width=3)
  params = model.init(jax.random.key(0))
  x = jnp.array([[1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 0, 0]])
  y = jnp.array([[2, 3, 4, 1], [2, 3, 0, 0], [0, 0, 0, 0]])
  values = base.cross_entropy(model.apply(params, x), y)
  expected = [values[0].mean(), values[1, :2].mean(), 0]
  np.testing.assert_allclose(model.loss(params, {'x': x, 'y': y}), expected, rtol=1e-6)
  assert model.metrics(params, {'x': x, 'y': y})['accuracy'][2] == 0


def test_cross_entropy_equals_numpy():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(6, 4)) * 30, rng.integers(0, 4, 6)
  shifted = logits - logits.max(1, keepdims=True)
  expected = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(6), labels]
  actual = base.cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_dropout_is_drawn_from_the_key():
  model = models.build('cnn', (12, 12, 1), 5, dropout=True)
  batch, params = _batch((12, 12, 1), 5), jax.jit(model.init)(jax.random.key(0))
  apply = jax.jit(model.apply)
  still = apply(params, batch['x'])
  keyed = [apply(params, batch['x'], jax.random.key(seed)) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(keyed[0], keyed[1])
  assert (keyed[0] != keyed[2]).any() and (keyed[0] != still).any()
  plain = jax.jit(models.build('cnn', (12, 12, 1), 5).apply)
  np.testing.assert_array_equal(plain(params, batch['x'], jax.random.key(0)), still)


@pytest.mark.parametrize(
  'match, call',
  [
    ("Did you mean 'lenet'", lambda: models.build('lenett', (16, 16, 1), 3)),
    ("Did you mean 'dropout'", lambda: models.build('cnn', (9, 9, 1), 3, dropuot=True)),
    ('options of the model', lambda: models.build('logistic', (9,), 3, width=3)),
    ('dropout must be', lambda: models.build('cnn', (9, 9, 1), 3, dropout='yes')),
    ('norm must be one of', lambda: models.build('cnn', (9, 9, 1), 3, norm='batch')),
    ('hidden must be', lambda: models.build('mlp', (9,), 3, hidden=[])),
    ('hidden must be', lambda: models.build('mlp', (9,), 3, hidden=[0])),
    ('blocks must be', lambda: models.build('resnet_gn', (8, 8, 3), 3, blocks=2)),
    ('width must be', lambda: models.build('char_lstm', (8,), 3, width=0)),
    ('num_classes must be', lambda: models.build('logistic', (9,), 1)),
    ('input_shape must be', lambda: models.build('logistic', (0,), 3)),
    ('input_shape must be one that', lambda: models.build('cnn', (4, 4, 1), 3)),
    ('input_shape must be one that', lambda: models.build('cnn', (784,), 3)),
  ],
)  # fmt: skip
def test_bad_arguments(match, call):
  with pytest.raises(ValueError, match=match):
    call()


def test_options_are_listed_with_their_defaults():
  assert models.options('cnn') == {'dropout': False, 'norm': 'none', 'groups': 2}
