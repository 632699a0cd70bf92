"""Batches in parts: gradients are those of the whole batch, in the memory of one part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem.core import Accumulated, accumulated, compose
from fedjax_mem.engine import Execution
from fedjax_mem.stages.algorithm import ALGORITHMS, Sgd, _base, dp_sgd, fedavg
from fedjax_mem.stages.weigh import by_examples

# Sums of at most 13 losses in another order.
TOLERANCE = 1e-6


def batch(rows=13, seed=3):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(rows, tiny.FEATURES)).astype(np.float32)
  return {'x': jnp.asarray(x), 'y': jnp.asarray(rng.integers(0, tiny.CLASSES, rows), jnp.int32)}


def exact(params, batch, mask):
  """Returns (sum of the losses in the mask, its gradient) in NumPy's float64."""
  w, b = (np.float64(params[name]) for name in 'wb')
  x, y, on = np.float64(batch['x']), np.asarray(batch['y']), np.asarray(mask)
  logits = x @ w + b
  p = np.exp(logits - logits.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  d = (p - np.eye(tiny.CLASSES)[y]) * on[:, None]
  return -np.log(p[np.arange(len(y)), y])[on].sum(), {'b': d.sum(0), 'w': x.T @ d}


MASKS = {'all': np.ones(13, bool), 'padded': np.arange(13) < 6, 'one': np.arange(13) == 12}


@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('parts', [1, 2, 3, 5, 13, 40])
def test_sum_and_gradient_are_those_of_the_whole_batch(parts, mask):
  params, data, on = tiny.initial(), batch(), jnp.asarray(MASKS[mask])
  loss = Accumulated(tiny.loss, parts)
  value, grads = jax.jit(jax.value_and_grad(lambda p: loss.total(p, data, on) / 3))(params)
  total, slopes = exact(params, data, on)
  np.testing.assert_allclose(value, total / 3, rtol=TOLERANCE)
  for name in 'wb':
    np.testing.assert_allclose(grads[name], slopes[name] / 3, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize('parts', [2, 4, 13])
def test_losses_of_single_examples_and_their_gradient(parts):
  params, data = tiny.initial(), batch()
  weights = jnp.asarray(np.random.default_rng(0).normal(size=13), jnp.float32)
  loss = Accumulated(tiny.loss, parts)
  tiny.assert_close(loss(params, data), tiny.loss(params, data), TOLERANCE)
  slopes = (
    jax.grad(lambda p, f=f: (weights * f(p, data)).sum())(params) for f in (loss, tiny.loss)
  )
  tiny.assert_close(*slopes, TOLERANCE)


def test_rows_that_fill_up_the_last_part_count_nothing():
  # Thirteen rows in five parts of three: the last row is there three times.
  params, data = tiny.initial(), batch()
  on = jnp.ones(13, bool)
  assert accumulated.summed(lambda p, b, k: jnp.ones(len(b['y'])), params, data, on, None) == 13
  ones = Accumulated(lambda p, b, k: jnp.ones(len(b['y'])), 5)
  assert ones.total(params, data, on) == 13


def test_an_infinite_loss_outside_of_the_mask_has_no_effect():
  params, data = tiny.initial(), batch()
  far = lambda p, b, k: tiny.loss(p, b) + jnp.where(b['y'] == 9, jnp.inf, 0)
  data['y'] = data['y'].at[4].set(9).at[12].set(9)
  on = jnp.arange(13) < 4
  value, grads = jax.value_and_grad(lambda p: Accumulated(far, 4).total(p, data, on))(params)
  assert np.isfinite(value) and all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


def test_each_part_has_its_own_key_and_draws_repeat():
  params, data, on = tiny.initial(), batch(12), jnp.ones(12, bool)
  noisy = lambda p, b, key: jax.random.uniform(key, b['y'].shape)
  loss, key = Accumulated(noisy, 3), jax.random.key(5)
  drawn = loss(params, data, key)
  assert len(set(drawn.tolist())) == 12
  np.testing.assert_allclose(loss.total(params, data, on, key), drawn.sum(), rtol=TOLERANCE)


def test_a_loss_of_another_shape_is_refused():
  wrong = Accumulated(lambda p, b, k: jnp.zeros((len(b['y']), 2)), 2)
  with pytest.raises(ValueError, match=r'loss must return one value per example, shape \(7,\)'):
    wrong.total(tiny.initial(), batch(), jnp.ones(13, bool))


@pytest.mark.parametrize('way', ['sum', 'single losses'])
def test_it_needs_the_memory_of_a_part(way):
  # Twelve layers of 64 units: what they compute of 512 examples is 1.6 MB, of a part 0.2 MB.
  params = [jnp.eye(64) for _ in range(12)]

  def deep(params, batch, key=None):
    x = batch['x']
    for w in params:
      x = jnp.tanh(x @ w)
    return (x * x).sum(1)

  data, on = {'x': jnp.ones((512, 64))}, jnp.ones(512, bool)

  def temporary(parts):
    loss = Accumulated(deep, parts)
    total = lambda p, d: loss.total(p, d, on) if way == 'sum' else loss(p, d).sum()
    grad = jax.grad(total)
    return jax.jit(grad).lower(params, data).compile().memory_analysis().temp_size_in_bytes

  one, two, eight = (temporary(parts) for parts in (1, 2, 8))
  assert two < 0.75 * one and eight < 0.4 * one


def train(loss, mode='vmap', name='fedavg', **options):
  """Returns the state after some rounds of the tiny problem, whose clients are ragged."""
  options = {'learning_rate': 0.3, 'batch_size': 5, 'epochs': 2} | options
  layer = ALGORITHMS[name](loss, **options)
  return tiny.execute(tiny.build(compose(layer, tiny.rota(), by_examples()), mode))[0]


NAMED = {
  'fedavg': {'optimizer': Sgd(0.9, 0.1)},
  'fedprox': {'mu': 0.1},
  'scaffold': {'total_weight': float(sum(tiny.COUNTS))},
  'fednova': {},
  'feddyn': {'alpha': 0.1, 'total_weight': float(sum(tiny.COUNTS))},
  'mime': {},
  'mime_lite': {},
}


@pytest.mark.first(1)
@pytest.mark.parametrize('name', NAMED)
def test_every_algorithm_trains_as_on_whole_batches(name):
  parts, whole = (
    train(x, name=name, **NAMED[name]) for x in (Accumulated(tiny.loss, 3), tiny.loss)
  )
  tiny.assert_close(parts, whole, 1e-5 if name == 'fedavg' else 2e-6)  # Adam divides by its root


def test_a_single_step_is_not_pooled_and_equal():
  options = {'batch_size': 9, 'epochs': 1}
  parts = train(Accumulated(tiny.loss, 4), **options)
  tiny.assert_close(parts, train(tiny.loss, 'pooled', **options))
  layer = fedavg(Accumulated(tiny.loss, 4), learning_rate=0.3, batch_size=9)
  sim = tiny.build(compose(layer, tiny.rota(), by_examples()), Execution(mode='vmap', pool=True))
  assert sim.setting.pool is None


@pytest.mark.first(1)
@pytest.mark.devices(2)
@pytest.mark.parametrize('mode', tiny.MODES)
def test_rounds_are_those_of_whole_batches_in_every_mode(mode):
  tiny.assert_close(train(Accumulated(tiny.loss, 3), mode), train(tiny.loss, 'loop'))


def test_dp_sgd_refuses_parts_and_names_its_own_argument():
  options = {'steps': 1, 'rate': 0.5, 'l2_clip_norm': 1.0, 'noise_multiplier': 1.0}
  with pytest.raises(ValueError, match=r'accumulate must be 1 .*`microbatch`.* got 4\.'):
    dp_sgd(Accumulated(tiny.loss, 4), learning_rate=0.1, batch_size=5, **options)


def test_convolutions_of_a_loss_in_parts_are_made_fast():
  def blur(params, batch, key):
    return jax.lax.conv(batch['x'][:, None, :, None], params, (1, 1), 'SAME').sum((1, 2, 3))

  given = jnp.ones((1, 1, 3, 1)), batch(), jnp.ones(13, bool)
  traced = [str(jax.make_jaxpr(x.total)(*given)) for x in (Accumulated(blur, 2), _fast(blur))]
  assert ['conv_general_dilated[' in text for text in traced] == [True, False]


def _fast(loss):
  return _base.loss_of(Accumulated(loss, 2))
