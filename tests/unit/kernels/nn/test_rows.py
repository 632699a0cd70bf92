"""A convolution as one product of rows, against `lax.conv_general_dilated`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax_mem.kernels.nn import rows


def _random(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('window, strides', [((3, 2), (2, 1)), ((1, 1), (3, 2))])
def test_values_and_both_gradients(window, strides):
  x, kernel = _random(0, 7, 6, 2, 3), _random(1, *window, 3, 4)
  names = ('HWNC', 'HWIO', 'HWNC')
  plain = lambda x, k: lax.conv_general_dilated(x, k, strides, 'VALID', dimension_numbers=names)
  expected, back = jax.vjp(plain, x, kernel)
  geometry = rows.Geometry(window, strides, expected.shape[:2])
  actual, ours = jax.vjp(lambda x, k: rows.conv(x, k, geometry), x, kernel)
  cotangent = _random(2, *expected.shape)
  pairs = zip((actual, *ours(cotangent)), (expected, *back(cotangent)), strict=True)
  for a, e in pairs:
    np.testing.assert_allclose(a, e, rtol=0, atol=2e-6 * float(jnp.abs(e).max()))


def test_patches_are_in_the_order_of_the_kernel():
  x = jnp.arange(2 * 2 * 1 * 2.0).reshape(2, 2, 1, 2)
  places = rows.patches(x, rows.Geometry((2, 2), (1, 1), (1, 1)))
  assert places.ravel().tolist() == x.ravel().tolist()
