"""The product against `x @ kernel` and its autodiff, side by side and example by example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.nn import product


def _inputs(*clients):
  rng = np.random.default_rng(0)
  shapes = (4, 3, 5), (5, 6), (4, 3, 6)
  return [jnp.asarray(rng.normal(size=(*clients, *shape)), jnp.float32) for shape in shapes]


def _all(call):
  """Returns (x, kernel, cotangent) -> (the product, d_x, d_kernel)."""

  def run(x, kernel, cotangent):
    y, pull = jax.vjp(call, x, kernel)
    return y, *pull(cotangent)

  return run


def _twin(x, kernel, cotangent):
  x, kernel, cotangent = (np.asarray(a, np.float64) for a in (x, kernel, cotangent))
  return x @ kernel, cotangent @ kernel.T, np.einsum('tbf,tbg->fg', x, cotangent)


def _close(actual, expected):
  for a, e in zip(actual, expected, strict=True):
    assert a.shape == e.shape and np.linalg.norm(a - e) <= 1e-6 * np.linalg.norm(e)


def test_equals_numpy():
  inputs = _inputs()
  _close(jax.jit(_all(product.product))(*inputs), _twin(*inputs))


@pytest.mark.slow
def test_clients_side_by_side_and_single_examples():
  inputs = _inputs(3)
  expected = [_twin(*[x[k] for x in inputs]) for k in range(3)]
  stacked = [np.stack(x) for x in zip(*expected, strict=True)]
  _close(jax.jit(jax.vmap(_all(product.product)))(*inputs), stacked)
  x, kernel, cotangent = _inputs()
  one = lambda x, c: _all(product.product)(x[:, None], kernel, c[:, None])[2]
  actual = jax.jit(jax.vmap(one, in_axes=1))(x, cotangent)
  _close([actual], [np.einsum('tbf,tbg->bfg', np.float64(x), np.float64(cotangent))])


@pytest.mark.parametrize('x, kernel', [((4, 3, 5), (6, 5)), ((5,), (5, 6)), ((4, 5), (5,))])
def test_bad_shapes(x, kernel):
  with pytest.raises(ValueError, match='kernel must be of shape'):
    product.product(jnp.zeros(x), jnp.zeros(kernel))
