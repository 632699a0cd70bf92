"""Convolutions against `lax.conv_general_dilated`, forward and backward."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from fedjax_mem.core import platforms
from fedjax_mem.kernels.nn import conv, winograd


def _array(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _input(layout, height, width, batch, channels):
  sizes = {'H': height, 'W': width, 'B': batch, 'C': channels}
  return _array(0, *(sizes[axis] for axis in layout))


def _assert_same(reference, candidate, x, kernel, tolerance=3e-6):
  """Compares values and both gradients, relative to their norms."""
  expected, expected_vjp = jax.vjp(reference, x, kernel)
  actual, actual_vjp = jax.vjp(candidate, x, kernel)
  cotangent = _array(2, *expected.shape)
  pairs = zip((actual, *actual_vjp(cotangent)), (expected, *expected_vjp(cotangent)), strict=True)
  for a, e in pairs:
    assert a.shape == e.shape and a.dtype == e.dtype
    assert np.linalg.norm(a - e) <= tolerance * np.linalg.norm(e)


def _reference(layout, strides, padding):
  names = layout.replace('B', 'N')
  return lambda x, k: lax.conv_general_dilated(
    x, k, strides, padding, dimension_numbers=(names, 'HWIO', names)
  )


@pytest.mark.slow
@pytest.mark.parametrize('layout', conv.LAYOUTS)
@pytest.mark.parametrize(
  'size, channels, out, window, strides, padding',
  [
    ((9, 8), 1, 5, (3, 3), (1, 1), 'VALID'),
    ((9, 8), 3, 5, (5, 3), (2, 1), 'SAME'),
    ((9, 8), 2, 4, (2, 2), (2, 3), ((1, 2), (0, 1))),
    ((9, 8), 3, 4, (3, 3), (1, 1), ((-1, 0), (1, -2))),
    ((9, 8), 20, 17, (3, 3), (1, 1), 'SAME'),
    ((9, 8), 20, 17, (3, 3), (2, 2), 'SAME'),
    ((9, 8), 4, 6, (1, 1), (2, 2), 'SAME'),
    ((9, 8), 20, 17, (1, 1), (2, 2), 'SAME'),
    ((9, 8), 20, 17, (4, 2), (2, 3), ((-1, 2), (0, -1))),
    ((3, 3), 2, 3, (3, 3), (1, 1), 'VALID'),
  ],
)
def test_values_and_gradients(layout, size, channels, out, window, strides, padding):
  x, kernel = _input(layout, *size, 4, channels), _array(1, *window, channels, out)
  candidate = lambda x, k: conv.conv(x, k, strides=strides, padding=padding, layout=layout)
  _assert_same(_reference(layout, strides, padding), candidate, x, kernel)


@pytest.mark.slow
@pytest.mark.parametrize('r', winograd.TILES)
@pytest.mark.parametrize('extra', [0, 1, 2, 3, 4, 9])
def test_winograd_of_every_remainder(r, extra):
  x, kernel = _input('HWBC', r + extra, r + 3, 3, 4), _array(1, r, r, 4, 5)
  _assert_same(_reference('HWBC', (1, 1), 'VALID'), winograd.conv, x, kernel)


@pytest.mark.slow
def test_winograd_error_is_a_few_times_that_of_plain_sums():
  x = np.maximum(np.random.default_rng(0).normal(size=(14, 14, 8, 32)), 0)
  kernel = np.random.default_rng(1).normal(size=(3, 3, 32, 64))
  exact = sum(x[i : i + 12, j : j + 12] @ kernel[i, j] for i in range(3) for j in range(3))
  error = winograd.conv(jnp.float32(x), jnp.float32(kernel)) - exact
  assert np.linalg.norm(error) < 1.5e-6 * np.linalg.norm(exact)


def test_winograd_matrices_of_the_customary_points(monkeypatch):
  # F(4 x 4, 3 x 3) of Lavin & Gray (2016), up to the scale of each point and the order of points.
  monkeypatch.setattr(winograd, '_POINTS', (0.0, 1.0, -1.0, 2.0, -2.0))
  at, g, bt = winograd.matrices.__wrapped__(3)
  np.testing.assert_allclose(at[1], [0, 1, -1, 2, -2, 0])
  np.testing.assert_allclose(at[3], [0, 1, -1, 8, -8, 1])
  np.testing.assert_allclose(g[:2], [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6]])
  np.testing.assert_allclose(bt[0], [4, 0, -5, 0, 1, 0])
  np.testing.assert_allclose(bt[-1], [0, 4, 0, -5, 0, 1])


@pytest.mark.slow
@pytest.mark.parametrize(
  'shape, kernel, options',
  [
    ((2, 9, 8, 3), (3, 3, 3, 4), {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}),
    ((2, 9, 8, 20), (3, 3, 20, 18), {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}),
    ((2, 6, 9, 8), (9, 2, 3, 3), {'feature_group_count': 3}),
    ((2, 9, 3), (3, 3, 4), {'dimension_numbers': ('NWC', 'WIO', 'NWC'), 'window_strides': (2,)}),
    ((2, 5, 6, 4, 3), (2, 2, 3, 3, 4), {'dimension_numbers': ('NHWDC', 'HWDIO', 'NHWDC')}),
    (
      (2, 9, 8, 20),
      (3, 3, 20, 18),
      {
        'dimension_numbers': ('NHWC', 'HWIO', 'NHWC'),
        'window_strides': (2, 1),
        'padding': ((1, 2), (0, 3)),
        'lhs_dilation': (2, 3),
        'rhs_dilation': (1, 2),
      },
    ),
  ],
)
def test_drop_in(shape, kernel, options):
  options = {'window_strides': (1,) * (len(shape) - 2), 'padding': 'SAME', **options}
  reference = lambda x, k: lax.conv_general_dilated(x, k, **options)
  candidate = lambda x, k: conv.conv_general_dilated(x, k, **options)
  _assert_same(reference, candidate, _array(0, *shape), _array(1, *kernel))


@pytest.mark.slow
@pytest.mark.parametrize('features', [6, 24])
def test_drop_in_in_a_flax_layer(features):
  x = _array(0, 2, 8, 8, features)
  plain = nn.Conv(features, (3, 3))
  fast = nn.Conv(features, (3, 3), conv_general_dilated=conv.conv_general_dilated)
  params = plain.init(jax.random.key(0), x)
  np.testing.assert_allclose(fast.apply(params, x), plain.apply(params, x), atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize('layout, channels', [('CHWB', 3), ('HWBC', 3), ('HWBC', 16)])
def test_weights_of_each_client_under_vmap_scan_and_while(layout, channels):
  x, kernels = _input(layout, 7, 7, 2, channels), _array(1, 3, 3, 3, channels, 16)
  loss = lambda k: jnp.sum(jnp.sin(conv.conv(x, k, layout=layout)))
  gradient = jax.jit(jax.grad(loss))
  loop = jnp.stack([gradient(k) for k in kernels])
  np.testing.assert_allclose(jax.jit(jax.vmap(gradient))(kernels), loop, atol=3e-4)
  scanned = jax.jit(lambda ks: lax.scan(lambda c, k: (c, gradient(k)), 0, ks)[1])(kernels)
  np.testing.assert_allclose(scanned, loop, atol=3e-4)

  def body(carry):
    i, total = carry
    return i + 1, total + gradient(kernels[i])

  start = (jnp.int32(0), jnp.zeros_like(kernels[0]))
  total = jax.jit(lambda: lax.while_loop(lambda c: c[0] < 3, body, start)[1])()
  np.testing.assert_allclose(total, loop.sum(0), atol=1e-3)


def test_under_shard_map():
  devices = jax.devices()[:2]
  mesh = jax.sharding.Mesh(np.array(devices), ('clients',), axis_types=(AxisType.Auto,))
  x, kernels = _input('HWBC', 7, 7, 2, 16), _array(1, 2 * len(devices), 3, 3, 16, 16)
  gradient = jax.grad(lambda k: jnp.sum(jnp.sin(conv.conv(x, k))))
  spec = PartitionSpec('clients')
  mapped = jax.shard_map(
    lambda ks: lax.map(gradient, ks), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
  )
  np.testing.assert_allclose(jax.jit(mapped)(kernels), lax.map(gradient, kernels), atol=3e-4)


@pytest.mark.parametrize('method, layout', [('winograd', 'HWBC'), ('gemm', 'CHWB')])
def test_exports_for_other_platforms(method, layout):
  x, kernel = _input(layout, 7, 7, 2, 16), _array(1, 3, 3, 16, 16)
  loss = lambda x, k: jnp.sum(conv.conv(x, k, method=method, layout=layout) ** 2)
  exported = jax.export.export(jax.jit(jax.grad(loss, (0, 1))), platforms=('cpu', 'cuda', 'tpu'))
  assert exported(x, kernel).platforms == ('cpu', 'cuda', 'tpu')


def test_no_lax_convolution_on_a_cpu():
  x, kernel = _input('HWBC', 7, 7, 2, 16), _array(1, 3, 3, 16, 16)
  for method in ('auto', 'gemm'):
    gradient = jax.grad(lambda k, m=method: jnp.sum(conv.conv(x, k, method=m) ** 2))
    assert 'conv_general' not in str(jax.make_jaxpr(gradient)(kernel))


def test_lax_is_preferred_elsewhere():
  x, kernel = _input('CHWB', 7, 7, 2, 3), _array(1, 3, 3, 3, 4)
  reference = _reference('CHWB', (1, 1), 'VALID')(x, kernel)
  with platforms.made_for('gpu'):
    assert conv.resolve('auto', 'HWBC', (3, 3, 32, 64), (1, 1), (24, 24)) == 'lax'
    found = conv.conv(x, kernel, layout='CHWB')
  np.testing.assert_allclose(found, reference, atol=1e-5)


def test_the_table_of_other_platforms_decides_there(monkeypatch):
  monkeypatch.setattr(conv, 'ELSEWHERE', (('gpu', 3, 'gemm'), ('gpu', float('inf'), 'lax')))
  x, kernels = _array(0, 2, 7, 7, 4), {c: _array(1, 3, 3, c, 8) for c in (2, 4)}
  numbers = ('NHWC', 'HWIO', 'NHWC')

  def primitives(channels):
    convolve = functools.partial(
      conv.conv_general_dilated, window_strides=(1, 1), padding='SAME', dimension_numbers=numbers,
      feature_group_count=4 // channels,
    )  # fmt: skip
    return str(jax.make_jaxpr(convolve)(x, kernels[channels]))

  for name, few in (('gpu', True), ('tpu', False)):
    with platforms.made_for(name):
      assert [conv.resolve('auto', 'HWBC', (3, 3, c, 64), (1, 1), (24, 24)) for c in (3, 4)] == [
        'gemm' if few else 'lax', 'lax'
      ]  # fmt: skip
      assert ('conv_general' in primitives(2)) is not few and 'conv_general' in primitives(4)


@pytest.mark.parametrize(
  'layout, kernel, strides, output, expected',
  [
    ('HWBC', (3, 3, 32, 64), (1, 1), (24, 24), 'winograd'),
    ('HWBC', (5, 5, 32, 64), (1, 1), (24, 24), 'winograd'),
    ('HWBC', (3, 3, 1, 32), (1, 1), (24, 24), 'gemm'),
    ('HWBC', (3, 3, 32, 64), (2, 2), (24, 24), 'gemm'),
    ('HWBC', (3, 3, 32, 64), (1, 1), (24, 2), 'gemm'),
    ('HWBC', (3, 5, 32, 64), (1, 1), (24, 24), 'gemm'),
    ('HWBC', (7, 7, 32, 64), (1, 1), (24, 24), 'gemm'),
    ('CHWB', (3, 3, 32, 64), (1, 1), (24, 24), 'gemm'),
  ],
)
def test_choice_by_shape(layout, kernel, strides, output, expected):
  assert conv.resolve('auto', layout, kernel, strides, output) == expected


@pytest.mark.first(8)
@pytest.mark.parametrize(
  'match, call',
  [
    ('layout must be one of', lambda x, k: conv.conv(x, k, layout='NHWC')),
    ('method must be one of', lambda x, k: conv.conv(x, k, method='fft')),
    ('method must be another', lambda x, k: conv.conv(x, k, method='winograd', strides=(2, 2))),
    ('padding must be one of', lambda x, k: conv.conv(x, k, padding='CIRCULAR')),
    ('padding must be a pair', lambda x, k: conv.conv(x, k, padding=((1, 1),))),
    ('strides must be an integer >= 1', lambda x, k: conv.conv(x, k, strides=(0, 1))),
    ('x must be at least', lambda x, k: conv.conv(x[:2], k)),
    ('kernel must be', lambda x, k: conv.conv(x, k[:, :, :1])),
    ('batch_group_count', lambda x, k: conv.conv_general_dilated(
      x, k, (1, 1), 'SAME', dimension_numbers=('HWNC', 'HWIO', 'HWNC'), batch_group_count=2)),
  ],
)  # fmt: skip
def test_bad_arguments(match, call):
  with pytest.raises(ValueError, match=match):
    call(_input('HWBC', 7, 7, 2, 3), _array(1, 3, 3, 3, 4))
