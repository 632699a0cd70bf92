"""A user's own module or functions as a model, and what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_mem import models
from fedjax_mem.config import parts
from fedjax_mem.core import keys
from fedjax_mem.models import adapters, base
from fedjax_mem.tasks import Classification, NextToken, Regression


class _Linen(nn.Module):
  batch_norm: bool = False
  counter: bool = False

  @nn.compact
  def __call__(self, x, train: bool):
    x = nn.Dense(8)(x.reshape(x.shape[0], -1))
    if self.batch_norm:
      x = nn.BatchNorm(use_running_average=not train)(x)
    if self.counter:
      self.variable('counts', 'calls', lambda: jnp.zeros(()))
    x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
    return nn.Dense(3)(x)


class _Deterministic(nn.Module):
  @nn.compact
  def __call__(self, x, deterministic=True):
    return nn.Dense(3)(nn.Dropout(0.5, deterministic=deterministic)(x))


class _Nnx(nnx.Module):
  def __init__(self, rngs, batch_norm=False, dropout=0.5):
    self.first = nnx.Linear(4, 8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs) if batch_norm else None
    self.dropout = nnx.Dropout(dropout, rngs=rngs)
    self.last = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, x):
    x = self.first(x)
    x = self.norm(x) if self.norm is not None else x
    return self.last(self.dropout(nnx.relu(x)))


def _functions(x_size=4, classes=3):
  init = lambda key: {'w': jax.random.normal(key, (x_size, classes))}
  return init, lambda params, x: x @ params['w']


MODELS = {
  'linen': lambda: models.from_linen(_Linen(), (4,), 3),
  'deterministic': lambda: models.from_linen(_Deterministic(), (4,), 3),
  'nnx': lambda: models.from_nnx(_Nnx, (4,), 3),
  'functions': lambda: models.from_functions(*_functions(), (4,), 3),
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', MODELS)
def test_one_contract(kind):
  model = MODELS[kind]()
  params = model.init(jax.random.key(0))
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(params))
  other = model.init(jax.random.key(1))
  assert jax.tree.structure(params) == jax.tree.structure(other)
  assert any(
    (a != b).any() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True)
  )
  x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
  batch = {'x': x, 'y': jnp.arange(6) % 3}
  still = jax.jit(model.apply)(params, x)
  np.testing.assert_array_equal(still, jax.jit(model.apply)(params, x))
  assert still.shape == (6, 3)
  gradient = jax.jit(jax.grad(lambda p, k: model.loss(p, batch, k).sum()))
  for key in (None, jax.random.key(3)):
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params, key))
    assert jax.tree.structure(moved) == jax.tree.structure(params)
  assert model.metrics(params, batch)['accuracy'].shape == (6,)
  # Weights of their own for each client, as in a cohort.
  pair = jax.tree.map(lambda a, b: jnp.stack([a, b]), params, other)
  both = jax.vmap(model.apply, (0, None))(pair, x)
  np.testing.assert_allclose(both[1], model.apply(other, x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['linen', 'deterministic', 'nnx'])
def test_dropout_needs_a_key(kind):
  model = MODELS[kind]()
  params, x = model.init(jax.random.key(0)), jnp.ones((6, 4))
  drawn = [model.apply(params, x, jax.random.key(seed)) for seed in (1, 1, 2)]
  np.testing.assert_array_equal(drawn[0], drawn[1])
  assert (drawn[0] != drawn[2]).any()
  assert (drawn[0] != model.apply(params, x)).any()


class _Cnn(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.max_pool(nn.Conv(2, (3, 3))(x), (2, 2), (2, 2))
    return nn.Dense(3)(x.reshape(x.shape[0], -1))


class _NnxCnn(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
    self.dense = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, x):
    x = nnx.max_pool(self.conv(x), (2, 2), (2, 2))
    return self.dense(x.reshape(x.shape[0], -1))


@pytest.mark.first(1)
@pytest.mark.parametrize(
  'make',
  [
    lambda: models.from_linen(_Cnn(), (4, 4, 1), 3),
    lambda: models.from_nnx(_NnxCnn, (4, 4, 1), 3),
  ],
)
def test_convolutions_are_replaced_and_can_be_kept(make):
  model = make()
  kept, params = models.as_it_is(model), jax.eval_shape(model.init, jax.random.key(0))
  batch = {'x': jnp.ones((2, 4, 4, 1)), 'y': jnp.zeros(2, jnp.int32)}
  of = lambda model: {
    'apply': lambda p: model.apply(p, batch['x']).sum(),
    'loss': lambda p: jax.grad(lambda p: model.loss(p, batch, jax.random.key(1)).sum())(p),
    'metrics': lambda p: model.metrics(p, batch),
  }
  for name in ('apply', 'loss', 'metrics'):
    text = [str(jax.make_jaxpr(of(m)[name])(params)) for m in (model, kept)]
    found = [[slow in t for t in text] for slow in ('conv_general_dilated[', 'reduce_window_max[')]
    assert found == [[False, True], [False, True]]
  assert models.fast_convolutions(kept.loss) is kept.loss
  assert models.fast_convolutions(model.loss) is model.loss


def test_functions_may_take_a_key():
  init, apply = _functions()
  noisy = lambda p, x, key: apply(p, x) + (0 if key is None else jax.random.uniform(key))
  model = models.from_functions(init, noisy, (4,), 3)
  params, x = model.init(jax.random.key(0)), jnp.ones((2, 4))
  assert (model.apply(params, x, jax.random.key(1)) != model.apply(params, x)).all()


@pytest.mark.parametrize(
  'match, call',
  [
    (
      'batch_stats.*GroupNorm',
      lambda: models.from_linen(_Linen(batch_norm=True), (4,), 3),
    ),
    ('GroupNorm', lambda: models.from_nnx(lambda rngs: _Nnx(rngs, batch_norm=True), (4,), 3)),
    ("nothing but 'params'", lambda: models.from_linen(_Linen(counter=True), (4,), 3)),
    (r'must be \[B, 5\] to fit the labels', lambda: models.from_linen(_Linen(), (4,), 5)),
    (r'must be \[B, 5\] to fit the labels', lambda: models.from_nnx(_Nnx, (4,), 5)),
    ('to fit the labels', lambda: models.from_functions(*_functions(), (4,), 5)),
    ('input_shape must be one that', lambda: models.from_functions(*_functions(), (7,), 3)),
    ('module must be a flax.linen', lambda: models.from_linen(nn.relu, (4,), 3)),
    ('module must be a function', lambda: models.from_nnx(_Nnx(nnx.Rngs(0)), (4,), 3)),
    ('init must be callable', lambda: models.from_functions({}, lambda p, x: x, (4,), 3)),
  ],
)
def test_refusals(match, call):
  with pytest.raises(ValueError, match=match):
    call()


def test_a_model_gets_the_task_of_its_data_unless_it_states_its_own():
  module = nn.Dense(2, kernel_init=nn.initializers.zeros)
  model = adapters.from_linen(module, (3,), 2)
  params, x = model.init(jax.random.key(0)), jnp.ones((2, 3))
  batch = {'x': x, 'y': jnp.array([[1.0, 3.0], [0.0, 2.0]])}
  assert model.task == Classification()
  fit = base.fitted(model, Regression())
  assert fit.task == Regression() and fit.loss(params, batch).tolist() == [5.0, 2.0]
  values, kept = fit.measure(params, batch)
  assert values['loss'].tolist() == [5.0, 2.0] and kept['output'].shape == (2, 2)
  assert adapters.from_linen(module, (3,), 2, task='regression').task == Regression()
  own = model._replace(task=None, measure=None)
  assert base.fitted(own, Regression()) is own
  sequence = lambda **options: adapters.from_functions(
    lambda key: jnp.zeros((4, 4)), lambda w, x: w[x], (5,), 4, input_dtype=jnp.int32, **options
  )
  assert base.fitted(sequence(), NextToken(0)).task == NextToken(0)
  assert base.fitted(sequence(padding_id=3), NextToken(0)).task == NextToken(3)
  with pytest.raises(ValueError, match='num_classes must be an integer >= 2, got 1'):
    adapters.from_linen(nn.Dense(1), (3,), 1).for_task('classification')
  with pytest.raises(ValueError, match="a model for the task 'regression' must be of the shape"):
    fit.loss(params, {'x': x, 'y': jnp.ones((2, 3))})
  with pytest.raises(ValueError, match='num_classes must be an integer >= 2, got 1'):
    models.build('logistic', (3,), 1)
  assert models.build('mlp', (3,), 1, task='regression', hidden=(4,)).task == Regression()


class Shifted(nn.Module):
  """Its first parameters depend on the input that it is initialised with."""

  @nn.compact
  def __call__(self, x):
    shift = self.param('shift', lambda key: x.mean(0) + 1)
    return nn.Dense(3)(x - shift[None])


@pytest.mark.parametrize(
  'module', [Shifted(), nn.Dense(3), nn.Sequential([nn.Dense(4), nn.Dense(3)])]
)
def test_first_parameters_are_those_of_init(module):
  key = jax.random.key(4)
  made = models.from_linen(module, (5,), 3).init(key)
  expected = jax.jit(module.init)(key, jnp.zeros((1, 5)))['params']
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), made, expected)


def test_first_parameters_begun_here_are_drawn_by_any_thread():
  init = lambda key: {'w': jax.random.normal(key, (3, 2), jnp.result_type(float))}
  with jax.enable_x64(True):
    model = models.from_functions(init, lambda p, x: x @ p['w'].astype(x.dtype), (3,), 2)
    key = keys.seed_key(5)
    own = lambda root: keys.role_key(root, 'init')
    found, expected = parts.beside(model.init.begun(key, own)).result(), model.init(own(key))
  assert found['w'].dtype == expected['w'].dtype == jnp.float64
  np.testing.assert_array_equal(found['w'], expected['w'])
