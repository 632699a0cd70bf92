"""Gradients example by example: which kernels' are formed, and that all are those of `jax.grad`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.norms.outer import Outer
from fedjax_mem.stages.algorithm import _examples as examples

PARAMS = {
  'bias': jnp.arange(4.0) / 9,
  'first': jnp.sin(jnp.arange(24.0)).reshape(6, 4),
  'second': jnp.cos(jnp.arange(12.0)).reshape(3, 4),
}
BATCH = {'x': jnp.sin(jnp.arange(30.0) ** 2).reshape(5, 6), 'y': jnp.arange(5) % 3}
KEYS = jax.random.split(jax.random.key(0), 5)


def loss(params, batch, key, *, noise=0.0):
  """Returns the losses of two dense layers, the second with its kernel transposed and in front."""
  hidden = jnp.tanh(batch['x'] @ params['first'] + params['bias'][None])
  hidden = hidden * (1 + noise * jax.random.normal(key, hidden.shape))
  logits = jax.vmap(lambda h: params['second'] @ h)(hidden)
  return -jax.nn.log_softmax(logits)[jnp.arange(len(batch['y'])), batch['y']]


def plan(loss, params=PARAMS):
  one = jax.tree.map(lambda x: x[0], BATCH)
  return examples.plan(loss, params, one, KEYS[0])


def formed(loss, params=PARAMS):
  """Returns (losses, the gradients by example, formed)."""
  losses, grads = jax.jit(lambda p: examples.gradients(plan(loss, params), p, BATCH, KEYS))(params)
  whole = lambda x: jnp.einsum('nf,no->nfo', *x) if isinstance(x, Outer) else x
  return losses, [whole(x) for x in grads]


def by_grad(loss, params=PARAMS):
  one = lambda p, e, key: loss(p, jax.tree.map(lambda x: x[None], e), key)[0]
  losses, grads = jax.vmap(jax.value_and_grad(one), (None, 0, 0))(params, BATCH, KEYS)
  return losses, jax.tree.leaves(grads)


@pytest.mark.slow
def test_kernels_of_one_product_are_not_formed_whatever_side_they_are_on():
  made = plan(loss)
  bias, first, second = made.taps
  assert bias is None and made.formed == 4
  assert (first.vector, first.first) == (0, True) and not second.first
  keyed = lambda p, b, k: loss(p, b, k, noise=0.3)
  for each in (loss, keyed):
    (losses, got), (wanted, right) = formed(each), by_grad(each)
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    for x, y in zip(got, right, strict=True):
      np.testing.assert_allclose(x, y, atol=1e-6)


def twice(params, batch, key):
  return loss(params, batch, key) + jnp.sum(params['first'] ** 2)


def tied(params, batch, key):
  return loss(params, batch, key) + (batch['x'] @ params['first'] @ params['first'].T).sum(1)


def sequence(params, batch, key):
  both = jnp.stack([batch['x'], 2 * batch['x']], 1) @ params['first']
  return jnp.sin(both).sum((1, 2)) + loss({**params, 'first': jnp.ones((6, 4))}, batch, key)


def looped(params, batch, key):
  step = lambda carry, s: (jnp.sin(carry + s * (batch['x'] @ params['first'])), None)
  return jax.lax.scan(step, jnp.zeros((len(batch['x']), 4)), jnp.arange(3.0))[0].sum(1)


def compiled(params, batch, key):
  return jax.jit(lambda w, x: jnp.sin(x @ w))(params['first'], batch['x']).sum(1)


def halved(params, batch, key):
  low = lambda x: x.astype(jnp.bfloat16)
  return (low(batch['x']) @ low(params['first'])).astype(jnp.float32).sum(1)


@pytest.mark.first(2)
@pytest.mark.parametrize('other', [twice, tied, sequence, looped, compiled, halved])
def test_a_kernel_that_is_used_in_any_other_way_has_its_gradients_formed(other):
  assert plan(other).taps[1] is None
  (losses, got), (wanted, right) = formed(other), by_grad(other)
  np.testing.assert_allclose(losses, wanted, rtol=1e-5)
  for x, y in zip(got, right, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_two_parameters_multiplied_with_each_other_have_their_gradients_formed():
  params = {'a': PARAMS['first'][:1], 'c': PARAMS['second'].T[:, :1]}
  both = lambda p, b, k: jnp.sin(b['x'].sum(1) * (p['a'] @ p['c'])[0, 0])
  assert plan(both, params).taps == (None, None)
  (_, got), (_, right) = formed(both, params), by_grad(both, params)
  for x, y in zip(got, right, strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_a_loss_that_mixes_the_rows_of_a_batch_sees_one_of_them():
  def mixing(params, batch, key):
    losses = loss(params, batch, key)
    return losses - losses.mean() + jnp.max(losses)

  for x, y in zip(formed(mixing)[1], formed(loss)[1], strict=True):
    np.testing.assert_allclose(x, y, atol=1e-6)


def test_a_loss_of_another_shape_is_refused():
  with pytest.raises(ValueError, match='loss must return one value per example'):
    plan(lambda p, b, k: loss(p, b, k).sum())
