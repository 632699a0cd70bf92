"""Training in bfloat16: what is computed in 16 bits, what stays in 32, and how near it is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

import fedjax_mem as fm
from fedjax_mem import models
from fedjax_mem.core import compose
from fedjax_mem.kernels.nn.rewrite import _equations
from fedjax_mem.models.precision import in_bfloat16
from fedjax_mem.stages.algorithm import ALGORITHMS, Sgd, dp_sgd
from fedjax_mem.stages.weigh import by_examples, equal

LOW = jnp.dtype(jnp.bfloat16)
MODELS = {
  'logistic': ((8, 8, 1), {}),
  'mlp': ((8, 8, 1), {'hidden': (16, 16)}),
  'lenet': ((28, 28, 1), {}),
  'cnn': ((14, 14, 1), {'dropout': True, 'norm': 'group'}),
  'cnn_mcmahan': ((12, 12, 1), {}),
  'resnet_gn': ((12, 12, 3), {'blocks': (1, 1), 'width': 8}),
  'char_lstm': ((12,), {'width': 16}),
  'transformer': ((12,), {'width': 16}),
}


def made(name):
  """Returns (model, parameters, batch) of a model."""
  shape, options = MODELS[name]
  model, rng = models.build(name, shape, 10, **options), np.random.default_rng(0)
  tokens = name in ('transformer', 'char_lstm')
  x = rng.integers(1, 10, (16, *shape)) if tokens else rng.normal(size=(16, *shape))
  y = rng.integers(1, 10, (16, *shape) if tokens else 16)
  batch = {
    'x': jnp.asarray(x, jnp.int32 if tokens else jnp.float32),
    'y': jnp.asarray(y, jnp.int32),
  }
  return model, model.init(jax.random.key(0)), batch


def products(function, *args):
  """Returns the dtypes of all products in the program of a function."""
  found = _equations(jax.make_jaxpr(function)(*args).jaxpr)
  names = 'dot_general', 'conv_general_dilated'
  return [x.outvars[0].aval.dtype for x in found if x.primitive.name in names]


def test_every_model_is_in_the_table():
  assert set(MODELS) == set(models.MODELS)


@pytest.mark.first(2)
@pytest.mark.parametrize('name', MODELS)
def test_every_model_computes_in_16_bits_and_is_near_itself(name):
  model, params, batch = made(name)
  key = jax.random.key(1)
  mean = lambda loss: lambda p: loss(p, batch, key).mean()
  low, plain = mean(in_bfloat16(model.loss)), mean(model.loss)
  kinds = products(jax.grad(low), params)
  # Group normalisation's sums are no products; those of Winograd's are in float32.
  assert LOW in kinds and (
    kinds.count(LOW) == len(kinds) or name in ('cnn', 'resnet_gn', 'cnn_mcmahan')
  )
  assert LOW not in products(jax.grad(plain), params)
  (value, grads), (exact, slopes) = (jax.jit(jax.value_and_grad(f))(params) for f in (low, plain))
  assert {x.dtype for x in jax.tree.leaves((value, grads))} == {np.dtype('float32')}
  np.testing.assert_allclose(value, exact, rtol=0.01)
  error, size = (
    np.linalg.norm(tiny.vec(x)) for x in (jax.tree.map(jnp.subtract, grads, slopes), slopes)
  )
  assert 0 < error < 0.15 * size  # measured: 0.003 for logistic to 0.12 for cnn


def train(loss, mode='loop', name='fedavg', weighing=by_examples, params=None, **options):
  """Returns (state, metrics) after some rounds of the tiny problem, whose clients are ragged."""
  options = {'learning_rate': 0.3, 'batch_size': 5} | options
  layer = (ALGORITHMS[name] if isinstance(name, str) else name)(loss, **options)
  sim = tiny.build(compose(layer, tiny.rota(), weighing()), mode, params=params)
  return tiny.execute(sim, params=params)


def test_state_stays_in_float32_and_is_near_that_of_float32():
  low, plain = (train(x, optimizer=Sgd(0.9))[0] for x in (in_bfloat16(tiny.loss), tiny.loss))
  assert {x.dtype for x in jax.tree.leaves(low.params)} == {np.dtype('float32')}
  np.testing.assert_allclose(tiny.vec(low.params), tiny.vec(plain.params), atol=0.02)
  assert np.abs(tiny.vec(low.params) - tiny.vec(plain.params)).max() > 1e-5


def test_steps_smaller_than_a_parameters_rounding_are_not_lost():
  # 1 + 2**-10 is 1 in bfloat16, whose parameters 64 such steps would leave where they are.
  loss = in_bfloat16(lambda p, batch, key=None: jnp.broadcast_to(-p['w'], batch['y'].shape))
  params = {'w': jnp.float32(1)}
  state, _ = train(loss, params=params, learning_rate=2**-10, batch_size=1, epochs=16)
  assert state.params['w'] > 1 + 16 * 2**-10


def test_labels_keys_and_integers_are_not_cast():
  def loss(params, batch, key=None):
    kinds = {name: x.dtype for name, x in batch.items()}
    assert kinds == {'x': LOW, 'y': jnp.float32, 'z': jnp.int32} and params.dtype == LOW
    return jax.random.uniform(key, (2,)) + batch['y']

  batch = {'x': jnp.ones(2), 'y': jnp.ones(2), 'z': jnp.ones(2, jnp.int32)}
  assert in_bfloat16(loss)(jnp.float32(1), batch, jax.random.key(0)).dtype == jnp.float32


# Sums in another order may be rounded to either side. Pooled, each example's share is rounded, too.
TOLERANCES = dict.fromkeys(tiny.MODES, 2e-3) | dict.fromkeys(tiny.POOLED, 1e-2)


@pytest.mark.first(1)
@pytest.mark.devices(2)
@pytest.mark.parametrize('mode', TOLERANCES)
def test_modes_agree_up_to_16_bits(mode):
  model = models.build('mlp', (tiny.FEATURES,), tiny.CLASSES, hidden=(6,))
  params, options = model.init(jax.random.key(0)), {'batch_size': 9}
  states = [train(in_bfloat16(model.loss), m, params=params, **options)[0] for m in (mode, 'loop')]
  np.testing.assert_allclose(*(tiny.vec(x.params) for x in states), atol=TOLERANCES[mode])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['fedprox', 'scaffold', 'fednova', 'feddyn', 'mime', 'mime_lite'])
def test_every_algorithm_is_near_itself(name):
  total = {'total_weight': float(sum(tiny.COUNTS))} if name in ('scaffold', 'feddyn') else {}
  low, plain = (train(x, name=name, **total)[0] for x in (in_bfloat16(tiny.loss), tiny.loss))
  np.testing.assert_allclose(tiny.vec(low.params), tiny.vec(plain.params), atol=0.03)


@pytest.mark.slow
def test_dp_sgd_clips_the_gradients_of_16_bits():
  options = {'steps': 3, 'rate': 0.5, 'l2_clip_norm': 0.1, 'noise_multiplier': 0.0}
  options |= {'name': dp_sgd, 'weighing': equal}
  (low, seen), (plain, _) = (train(x, **options) for x in (in_bfloat16(tiny.loss), tiny.loss))
  np.testing.assert_allclose(tiny.vec(low.params), tiny.vec(plain.params), atol=0.01)
  assert {x.dtype for x in jax.tree.leaves(low.params)} == {np.dtype('float32')}
  assert (seen['algorithm/clipped'] > 0.5).all()


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, train=False):
    norm = nn.BatchNorm(use_running_average=not train, momentum=0.8)
    return nn.Dense(tiny.CLASSES)(nn.tanh(norm(nn.Dense(5)(x))))


@pytest.mark.slow
def test_running_statistics_are_found_and_kept_in_float32():
  model = models.from_linen(Net(), (tiny.FEATURES,), tiny.CLASSES, statistics='average')
  low, params = in_bfloat16(model.loss), model.init(jax.random.key(0))
  batch = {'x': jnp.ones((4, tiny.FEATURES)), 'y': jnp.zeros(4, jnp.int32)}
  call = lambda *a: low.trained(*a, batch, jnp.ones(4, bool), jax.random.key(0))
  assert set(products(call, params['params'], params['batch_stats'])) == {LOW}
  near, plain = (train(x, params=params)[0].params for x in (low, model.loss))
  assert {x.dtype for x in jax.tree.leaves(near)} == {np.dtype('float32')}
  np.testing.assert_allclose(tiny.vec(near), tiny.vec(plain), atol=0.05)
  tiny.assert_same_bits(low(params, batch), model.loss(params, batch))  # evaluation


def test_evaluation_of_a_model_stays_in_float32():
  model, params, batch = made('mlp')
  low = fm.models.trained_with(model, dtype='bfloat16')
  tiny.assert_same_bits(low.metrics(params, batch), model.metrics(params, batch))
  assert LOW not in products(low.apply, params, batch['x'])
  assert LOW in products(low.loss, params, batch)
