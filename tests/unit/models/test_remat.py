"""Activations that are computed again: equal results, in less memory for a deep model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem import models
from fedjax_mem.core import compose
from fedjax_mem.models.remat import _cuts, remat
from fedjax_mem.stages.algorithm import dp_sgd, fedavg
from fedjax_mem.stages.weigh import by_examples, equal

# The same operations in the same order; XLA may fuse them otherwise.
TOLERANCE = 2e-6

DEEP = {
  'resnet_gn': ((16, 16, 3), {'blocks': (2, 2), 'width': 8}),
  'transformer': ((16,), {'blocks': 8, 'width': 32}),
}
OTHERS = {
  'mlp': ((6,), {'hidden': (8,) * 6}),
  'cnn': ((12, 12, 1), {'dropout': True, 'norm': 'group'}),
  'char_lstm': ((10,), {'width': 8}),
}


def made(name, rows=32):
  """Returns (loss, parameters, batch) of a model."""
  shape, options = (DEEP | OTHERS)[name]
  model, rng = models.build(name, shape, 10, **options), np.random.default_rng(0)
  tokens = name in ('transformer', 'char_lstm')
  x = rng.integers(1, 10, (rows, *shape)) if tokens else rng.normal(size=(rows, *shape))
  y = rng.integers(1, 10, (rows, *shape) if tokens else rows)
  batch = {
    'x': jnp.asarray(x, jnp.int32 if tokens else jnp.float32),
    'y': jnp.asarray(y, jnp.int32),
  }
  return model.loss, model.init(jax.random.key(0)), batch


def compiled(loss, params, batch):
  """Returns the compiled (parameters, batch) -> (mean loss, its gradient), with dropout."""
  mean = lambda p, b: loss(p, b, jax.random.key(1)).mean()
  return jax.jit(jax.value_and_grad(mean)).lower(params, batch).compile()


@pytest.mark.slow
@pytest.mark.parametrize('name', [*DEEP, *OTHERS])
def test_values_and_gradients_are_equal(name):
  loss, params, batch = made(name)
  again = compiled(remat(loss), params, batch)(params, batch)
  tiny.assert_close(again, compiled(loss, params, batch)(params, batch), TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize('name', DEEP)
def test_a_deep_model_needs_less_memory(name):
  loss, params, batch = made(name)
  size = lambda f: compiled(f, params, batch).memory_analysis().temp_size_in_bytes
  assert size(remat(loss)) < 0.6 * size(loss)


def chain(params, batch, key=None):
  x = batch['x']
  for w in params:
    x = jnp.tanh(x @ w)
  return (x * x).sum(1)


@pytest.mark.parametrize('inside', ['alone', 'loop', 'clients'])
def test_memory_also_falls_in_loops_and_side_by_side(inside):
  params, x = [jnp.eye(32)] * 16, jnp.ones((512, 32))

  def temporary(loss):
    step = jax.grad(lambda p, x: loss(p, {'x': x}).sum())
    down = lambda p, x: jax.tree.map(jnp.subtract, p, step(p, x))
    train = lambda p, x: jax.lax.fori_loop(0, 3, lambda i, p: down(p, x), p)
    function = {'alone': step, 'loop': train, 'clients': jax.vmap(train, (None, 0))}[inside]
    given = jnp.stack([x, x]) if inside == 'clients' else x
    program = jax.jit(function).lower(params, given).compile()
    return program.memory_analysis().temp_size_in_bytes

  assert temporary(remat(chain)) < 0.6 * temporary(chain)


def test_segments_are_about_the_root_of_the_layers_and_equally_long():
  params = [jnp.eye(8)] * 36
  cuts = _cuts(jax.make_jaxpr(chain)(params, {'x': jnp.ones((64, 8))}))
  lengths = np.diff(cuts)
  assert cuts[0] == 0 and cuts[-1] == 2 * 36 + 2 and 5 <= len(lengths) <= 12
  assert lengths.max() <= 1.5 * lengths.mean()


def test_a_cut_is_where_few_values_cross_it():
  def narrow(params, batch, key=None):
    for _ in range(8):  # three values of 640 bytes each in a row, then one of 64
      wide = jnp.tanh(jnp.tanh(batch['x'] * params) + params)
      params = params + wide.sum(1, keepdims=True)[:, :1].mean()
    return params.sum() * jnp.ones(16)

  traced = jax.make_jaxpr(narrow)(jnp.float32(1), {'x': jnp.ones((16, 10))})
  names = [traced.jaxpr.eqns[i].primitive.name for i in _cuts(traced)[1:-1]]
  assert names and 'tanh' not in names and 'reduce_sum' not in names


def test_a_loss_of_one_operation_or_none_is_as_it_was():
  batch = {'x': jnp.arange(3.0)}
  assert remat(lambda p, b, k=None: b['x'])(1.0, batch).tolist() == [0, 1, 2]
  assert remat(lambda p, b, k=None: p * b['x'])(2.0, batch).tolist() == [0, 2, 4]


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    for _ in range(4):
      x = nn.tanh(nn.BatchNorm(use_running_average=not train, momentum=0.8)(nn.Dense(7)(x)))
    return nn.Dense(tiny.CLASSES)(x)


def state_of(loss, params, mode='vmap', train=fedavg, weighing=by_examples, **options):
  options = {'learning_rate': 0.3, 'batch_size': 5} | options
  layers = compose(train(loss, **options), tiny.rota(), weighing())
  sim = tiny.build(layers, mode, params=params)
  return tiny.execute(sim, params=params)[0]


@pytest.mark.slow
def test_running_statistics_are_those_of_training_without_it():
  model = models.from_linen(Net(), (tiny.FEATURES,), tiny.CLASSES, statistics='average')
  params, again = model.init(jax.random.key(0)), models.trained_with(model, remat=True)
  # Statistics of the one or two examples of a last batch magnify rounding.
  tiny.assert_close(*(state_of(x.loss, params) for x in (again, model)), 2e-4)


@pytest.mark.slow
@pytest.mark.devices(2)
@pytest.mark.parametrize('mode', tiny.MODES | tiny.POOLED)
def test_rounds_are_equal_in_every_mode(mode):
  model = models.build('mlp', (tiny.FEATURES,), tiny.CLASSES, hidden=(6,) * 8)
  params, options = model.init(jax.random.key(0)), {'batch_size': 9}
  one = state_of(remat(model.loss), params, mode, **options)
  tiny.assert_close(one, state_of(model.loss, params, 'loop', **options), 1e-5)


@pytest.mark.slow
def test_gradients_of_single_examples_are_equal():
  model = models.build('mlp', (tiny.FEATURES,), tiny.CLASSES, hidden=(6,) * 4)
  params = model.init(jax.random.key(0))
  options = {'steps': 2, 'rate': 0.5, 'l2_clip_norm': 0.5, 'noise_multiplier': 0.0}
  options |= {'train': dp_sgd, 'weighing': equal}
  tiny.assert_close(
    *(state_of(x, params, **options) for x in (remat(model.loss), model.loss)), 1e-5
  )
