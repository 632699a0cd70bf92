"""The published models: parameter counts, equality with plain flax, loss and metrics."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem import models, tasks
from fedjax_mem.models import transformer

COUNTS = [
  ('logistic', (28, 28, 1), 10, {}, 7_850),
  ('mlp', (784,), 10, {}, 199_210),
  ('cnn', (28, 28, 1), 62, {}, 1_206_590),
  ('cnn', (28, 28, 1), 62, {'dropout': True}, 1_206_590),
  ('cnn_mcmahan', (28, 28, 1), 10, {}, 1_663_370),
  ('lenet', (28, 28, 1), 10, {}, 44_426),
  ('char_lstm', (80,), 90, {}, 820_522),
  # Embeddings of 90 tokens and 128 positions; twice 12 W**2 + 13 W of a block; 2 W; 90 (W + 1).
  ('transformer', (128,), 90, {}, 218 * 128 + 2 * (12 * 128**2 + 13 * 128) + 256 + 90 * 129),
  # torchvision's resnet18 has 11,689,512 for 1,000 classes, 11,220,132 for 100; the stem's window
  # is 3 x 3 instead of 7 x 7 here: 40 * 3 * 64 fewer.
  pytest.param(
    *('resnet_gn', (32, 32, 3), 100, {}, 11_227_812 - 40 * 3 * 64), marks=pytest.mark.slow
  ),
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
  ('transformer', (6,), {'width': 8, 'heads': 2, 'blocks': 1}),
  ('resnet_gn', (8, 8, 3), {'blocks': [1, 1], 'width': 4}),
]


@pytest.mark.first(1)
@pytest.mark.parametrize('name, shape, options', SMALL)
def test_every_model_learns_a_batch(name, shape, options):
  model = models.build(name, shape, 7, **options)
  batch = _batch(shape, 7, tokens=name in ('char_lstm', 'transformer'))
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
  reference = lambda p: tasks.cross_entropy(plain.apply({'params': p}, batch['x']), batch['y'])
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


def _norm(p, x):
  centred = x - x.mean(-1, keepdims=True)
  scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
  return scaled * p['scale'] + p['bias']


def _transformer(p, tokens, heads):
  """Returns the logits [B, T, K] of a transformer, head by head and position by position."""
  dense = lambda p, x: x @ p['kernel'] + p['bias']
  x = p['embedding'][tokens] + p['positions']
  length, width = p['positions'].shape
  for name in sorted(name for name in p if name.startswith('block')):
    q = p[name]
    drive = dense(q['attention']['qkv'], _norm(q['norm_0'], x))
    mixed = np.zeros_like(x)
    for b, h in np.ndindex(len(x), heads):
      part = slice(h * width // heads, (h + 1) * width // heads)
      of_head = drive[b].reshape(length, heads, 3, width // heads)[:, h]
      query, key, value = (of_head[:, i] for i in range(3))
      for t in range(length):
        weights = np.exp(query[t] @ key[: t + 1].T / np.sqrt(width / heads))
        mixed[b, t, part] = weights / weights.sum() @ value[: t + 1]
    x = x + dense(q['attention']['out'], mixed)
    z = dense(q['hidden'], _norm(q['norm_1'], x))
    z = z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
    x = x + dense(q['out'], z)
  return dense(p['logits'], _norm(p['norm'], x))


@pytest.mark.slow
def test_transformer_and_its_gradient_equal_numpy(monkeypatch):
  monkeypatch.setattr(transformer, '_QUERIES', 2)  # in three blocks of queries
  model = models.build('transformer', (5,), 7, width=8, heads=2)
  rng = np.random.default_rng(0)
  # Scales and biases that are not one and zero, scores that are not all alike.
  params = jax.tree.map(
    lambda x: jnp.asarray(x + rng.normal(0, 0.5, x.shape), jnp.float32),
    jax.jit(model.init)(jax.random.key(0)),
  )
  rows = rng.integers(1, 7, (3, 6))
  rows[1, 4:] = 0  # padding at the end
  batch = {'x': jnp.asarray(rows[:, :-1]), 'y': jnp.asarray(rows[:, 1:])}
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  logits = _transformer(p, rows[:, :-1], 2)
  np.testing.assert_allclose(jax.jit(model.apply)(params, batch['x']), logits, atol=2e-5)

  def loss(p):
    logits = _transformer(p, rows[:, :-1], 2)
    right = np.take_along_axis(logits, rows[:, 1:, None], 2)[..., 0]
    values, real = np.log(np.exp(logits).sum(2)) - right, rows[:, 1:] != 0
    return ((values * real).sum(1) / real.sum(1)).mean()

  gradient = jax.jit(jax.grad(lambda p: model.loss(p, batch).mean()))(params)
  for _ in range(5):
    way = jax.tree.map(lambda x: rng.normal(size=x.shape), p)
    near, far = (loss(jax.tree.map(lambda x, v, s=s: x + s * v, p, way)) for s in (-1e-5, 1e-5))
    slope = sum(np.vdot(g, v) for g, v in zip(*map(jax.tree.leaves, (gradient, way)), strict=True))
    np.testing.assert_allclose(slope, (far - near) / 2e-5, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_padding_does_not_count():
  model = models.build('char_lstm', (4,), 5, embedding=2, width=3)
  params = model.init(jax.random.key(0))
  x = jnp.array([[1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 0, 0]])
  y = jnp.array([[2, 3, 4, 1], [2, 3, 0, 0], [0, 0, 0, 0]])
  values = tasks.cross_entropy(model.apply(params, x), y)
  expected = [values[0].mean(), values[1, :2].mean(), 0]
  np.testing.assert_allclose(model.loss(params, {'x': x, 'y': y}), expected, rtol=1e-6)
  assert model.metrics(params, {'x': x, 'y': y})['accuracy'][2] == 0


def test_cross_entropy_equals_numpy():
  rng = np.random.default_rng(0)
  logits, labels = rng.normal(size=(6, 4)) * 30, rng.integers(0, 4, 6)
  shifted = logits - logits.max(1, keepdims=True)
  expected = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(6), labels]
  actual = tasks.cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
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
    ('at most 2.*40 parameters', lambda: models.build('mlp', (9,), 3, hidden=[10**15])),
    ('input_shape must be|at most', lambda: models.build('mlp', (9,), 3, hidden=[10**20])),
    ('blocks must be', lambda: models.build('resnet_gn', (8, 8, 3), 3, blocks=2)),
    ('width must be', lambda: models.build('char_lstm', (8,), 3, width=0)),
    ('heads must divide', lambda: models.build('transformer', (8,), 3, width=8, heads=3)),
    ('blocks must be', lambda: models.build('transformer', (8,), 3, blocks=0)),
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
