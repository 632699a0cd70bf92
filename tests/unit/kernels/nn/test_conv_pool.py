"""A narrow convolution and its pooling as one product, against the two one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax_mem.core import platforms
from fedjax_mem.kernels.nn import conv_pool, pool


def _plain(padding, window):
  """Returns JAX's own convolution, and its pooling by `reduce_window`."""
  names, steps = ('CHWN', 'HWIO', 'CHWN'), (1, *window, 1)

  def both(x, kernel):
    y = lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=names)
    return lax.reduce_window(y, -jnp.inf, lax.max, steps, steps, 'VALID')

  return both


def _draw(seed, *shape, whole=False):
  rng = np.random.default_rng(seed)
  # Few distinct integers: most windows tie, and all sums are exact.
  made = rng.integers(0, 2, shape) if whole else rng.normal(size=shape)
  return jnp.asarray(made, jnp.float32)


@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize(
  ('size', 'side', 'channels', 'padding', 'window'),
  [
    ((9, 8), (5, 5), 1, 'VALID', (2, 2)),
    ((7, 9), (3, 3), 3, 'SAME', [2, 2]),
    ((7, 9), (3, 3), 3, 'SAME', (2, 3)),
    ((6, 7), (2, 3), 2, [(1, 0), (2, 1)], (3, 1)),
    ((5, 5), (1, 1), 4, 'VALID', (1, 1)),
  ],
)
def test_values_and_gradients(size, side, channels, padding, window, whole):
  x, kernel = _draw(0, channels, *size, 4, whole=whole), _draw(1, *side, channels, 5, whole=whole)
  ours = lambda x, k: conv_pool.conv_pool(x, k, padding=padding, layout='CHWB', window=window)
  expected, pulled = jax.vjp(_plain(padding, window), x, kernel)
  found, pull = jax.vjp(ours, x, kernel)
  g = _draw(2, *expected.shape, whole=whole)
  near = np.testing.assert_array_equal if whole else _near
  near(found, expected)
  for ours_, theirs in zip(pull(g), pulled(g), strict=True):
    near(ours_, theirs)


def _near(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_it_is_the_one_product(monkeypatch):
  monkeypatch.setattr(conv_pool.pool, 'max_pool', None)  # would be called for the other way
  x, kernel = _draw(0, 1, 6, 6, 2), _draw(1, 5, 5, 1, 3)
  assert conv_pool.conv_pool(x, kernel, layout='CHWB').shape == (3, 1, 1, 2)


@pytest.mark.parametrize('why', ['wide', 'many', 'one example', 'HWBC', 'gpu'])
def test_else_it_is_one_after_the_other(why, monkeypatch):
  shape = {'wide': (2, 6, 6, 2), 'one example': (1, 6, 6, 1), 'HWBC': (6, 6, 2, 1)}
  x = _draw(0, *shape.get(why, (1, 6, 6, 2)))
  layout = why if why == 'HWBC' else 'CHWB'
  kernel = _draw(1, 5, 5, 2 if why == 'wide' else 1, 17 if why == 'many' else 3)
  monkeypatch.setattr(conv_pool, '_tiled', None)
  with platforms.made_for('gpu' if why == 'gpu' else 'cpu'):
    found = conv_pool.conv_pool(x, kernel, layout=layout)
  turned = x.transpose(3, 0, 1, 2) if layout == 'HWBC' else x
  expected = _plain('VALID', (2, 2))(turned, kernel)
  _near(found, expected.transpose(1, 2, 3, 0) if layout == 'HWBC' else expected)


def test_clients_side_by_side_are_one_after_another():
  x, kernel = _draw(0, 3, 1, 8, 8, 2), _draw(1, 3, 5, 5, 1, 3)

  def gradient(x, kernel):
    loss = lambda k: (conv_pool.conv_pool(x, k, layout='CHWB') ** 2).sum()
    return jax.grad(loss)(kernel)

  for one, beside in zip(map(gradient, x, kernel), jax.vmap(gradient)(x, kernel), strict=True):
    _near(one, beside)


def test_nan_spreads_and_has_no_gradient():
  x = jnp.zeros((1, 8, 8, 2)).at[0, 0, 0, 0].set(jnp.nan)
  kernel = jnp.ones((5, 5, 1, 2))
  y, pull = jax.vjp(lambda x: conv_pool.conv_pool(x, kernel, layout='CHWB'), x)
  assert np.isnan(y).sum() == 2  # of that example, in each output channel
  two = lambda x: pool.max_pool(_plain('VALID', (1, 1))(x, kernel), layout='CHWB')
  np.testing.assert_array_equal(pull(jnp.ones_like(y))[0], jax.vjp(two, x)[1](jnp.ones_like(y))[0])


@pytest.mark.parametrize('window', [(8, 2), (2, 0), (2,), (2.0, 2)])
def test_bad_window(window):
  with pytest.raises(ValueError, match='window must be'):
    conv_pool.conv_pool(
      jnp.zeros((1, 7, 7, 2)), jnp.zeros((3, 3, 1, 2)), layout='CHWB', window=window
    )


def test_bad_channels():
  with pytest.raises(ValueError, match='kernel must be'):
    conv_pool.conv_pool(jnp.zeros((2, 7, 7, 2)), jnp.zeros((3, 3, 1, 2)), layout='CHWB')
