"""Our layers on floats of 16 bits: dtypes stay, and they are as near to float32 as bfloat16 is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.nn import conv, conv_pool, group_norm, lstm, pool, product, wide

RNG = np.random.default_rng(0)


def _normal(*shape, scale=1.0):
  return jnp.float32(scale * RNG.normal(size=shape))


# name -> (function, its arguments)
LAYERS = {
  'winograd 3': (
    functools.partial(conv.conv, method='winograd', padding='SAME'),
    (_normal(9, 8, 5, 8), _normal(3, 3, 8, 8, scale=0.1)),
  ),
  'winograd 5': (
    functools.partial(conv.conv, method='winograd'),
    (_normal(12, 12, 5, 16), _normal(5, 5, 16, 16, scale=0.05)),
  ),
  'rows': (
    functools.partial(conv.conv, method='gemm', strides=(2, 2), padding='SAME'),
    (_normal(9, 8, 5, 16), _normal(5, 5, 16, 8, scale=0.05)),
  ),
  'patches': (
    functools.partial(conv.conv, method='gemm', layout='CHWB'),
    (_normal(3, 9, 8, 5), _normal(5, 5, 3, 8, scale=0.1)),
  ),
  'pooled': (
    functools.partial(conv_pool.conv_pool, window=(2, 2), layout='CHWB'),
    (_normal(1, 10, 10, 5), _normal(3, 3, 1, 6, scale=0.3)),
  ),
  'pool': (pool.max_pool, (_normal(8, 8, 3, 4),)),
  'group norm': (
    lambda *a: group_norm.group_norm(*a, 2, 1e-5),
    (_normal(16, 16, 3, 4) + 3, 1 + _normal(4, scale=0.1), _normal(4)),
  ),
  'lstm': (lstm.lstm, (_normal(80, 3, 32), _normal(8, 32, scale=0.3))),
  'product': (product.product, (_normal(20, 3, 8), _normal(8, 5, scale=0.3))),
}


@pytest.mark.first(2)
@pytest.mark.parametrize('name', LAYERS)
def test_values_and_gradients_of_16_bits_are_near_those_of_32(name):
  layer, arguments = LAYERS[name]
  low = tuple(x.astype(jnp.bfloat16) for x in arguments)
  # The same numbers for both: only what the layer rounds is compared.
  same = tuple(x.astype(jnp.float32) for x in low)
  y, pull = jax.vjp(layer, *same)
  rounded, low_pull = jax.vjp(layer, *low)
  towards = _normal(*y.shape).astype(jnp.bfloat16)
  grads, rounded_grads = pull(towards.astype(jnp.float32)), low_pull(towards)
  assert rounded.dtype == jnp.bfloat16 and {g.dtype for g in rounded_grads} == {rounded.dtype}
  # A bfloat16 is off by up to 1 / 256; a layer rounds a few times.
  for exact, actual in zip((y, *grads), (rounded, *rounded_grads), strict=True):
    error = jnp.linalg.norm((actual.astype(jnp.float32) - exact).ravel())
    assert error <= 0.01 * jnp.linalg.norm(exact.ravel())


def test_only_floats_of_16_bits_are_widened():
  kinds = {jnp.bfloat16: 'float32', jnp.float16: 'float32', jnp.float32: 'float32'}
  for kind, expected in kinds.items():
    assert wide.at_least_float32(jnp.ones(2, kind)).dtype == expected
  with jax.enable_x64():
    assert wide.at_least_float32(jnp.ones(2, jnp.float64)).dtype == 'float64'
