"""Max pooling against `lax.reduce_window`, forward and backward, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax_mem.kernels.nn import pool


def _reference(layout, window):
  size = {'H': window[0], 'W': window[1]}
  steps = tuple(size.get(axis, 1) for axis in layout)
  return lambda x: lax.reduce_window(x, -jnp.inf, lax.max, steps, steps, 'VALID')


@pytest.mark.slow
@pytest.mark.parametrize('layout', ['HWBC', 'CHWB'])
@pytest.mark.parametrize('window', [(2, 2), (3, 2), (1, 1), (2, 5)])
def test_values_and_gradients_with_ties(layout, window):
  rng = np.random.default_rng(0)
  sizes = {'H': 7, 'W': 9, 'B': 4, 'C': 3}
  # Three distinct values only, so that most windows tie.
  x = jnp.asarray(rng.integers(0, 3, [sizes[axis] for axis in layout]), jnp.float32)
  expected, expected_vjp = jax.vjp(_reference(layout, window), x)
  actual, actual_vjp = jax.vjp(lambda x: pool.max_pool(x, window, layout=layout), x)
  cotangent = jnp.asarray(rng.normal(size=expected.shape), jnp.float32)
  np.testing.assert_array_equal(actual, expected)
  np.testing.assert_array_equal(actual_vjp(cotangent)[0], expected_vjp(cotangent)[0])


@pytest.mark.slow
def test_pooling_commutes_with_bias_and_rectifier():
  rng = np.random.default_rng(1)
  x = jnp.asarray(rng.normal(size=(6, 6, 3, 4)), jnp.float32)
  bias = jnp.asarray(rng.normal(size=(1, 1, 1, 4)), jnp.float32)
  late = lambda x: jnp.sin(pool.max_pool(jax.nn.relu(x + bias)))
  early = lambda x: jnp.sin(jax.nn.relu(pool.max_pool(x) + bias))
  np.testing.assert_array_equal(late(x), early(x))
  gradient = lambda f: jax.grad(lambda x: f(x).sum())(x)
  np.testing.assert_array_equal(gradient(late), gradient(early))


def test_nan_spreads():
  x = jnp.zeros((4, 4, 1, 1)).at[1, 1].set(jnp.nan)
  assert np.isnan(pool.max_pool(x)).sum() == 1


@pytest.mark.parametrize('window', [(8, 2), (2, 0), (2,), (2.0, 2)])
def test_bad_window(window):
  with pytest.raises(ValueError, match='window must be'):
    pool.max_pool(jnp.zeros((7, 7, 1, 1)), window)


def test_bad_layout():
  with pytest.raises(ValueError, match='layout must be one of'):
    pool.max_pool(jnp.zeros((7, 7, 1, 1)), layout='NHWC')
