"""Rewritten functions against the same functions by `jax.lax`, and all that must stay as it was."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from fedjax_mem.kernels.nn import conv
from fedjax_mem.kernels.nn.rewrite import as_it_is, fast_convolutions, warn_if_slow

SLOW = {'conv_general_dilated', 'select_and_scatter_add', 'reduce_window_max'}


def _array(seed, *shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def _primitives(function, *args):
  """Returns the names of all primitives of a function, whatever they are in."""
  names, found = set(), [jax.make_jaxpr(function)(*args).jaxpr]
  while found:
    for equation in found.pop().eqns:
      names.add(equation.primitive.name)
      for value in equation.params.values():
        for x in value if isinstance(value, tuple | list) else (value,):
          if hasattr(x, 'eqns'):
            found.append(getattr(x, 'jaxpr', x))
  return names


def _gradients(function):
  """Returns the function (*args) -> (value, gradients) of a sum that is not linear."""
  total = lambda *args: jnp.sin(function(*args).astype(jnp.float32)).sum()
  return lambda *args: (function(*args), jax.grad(total, tuple(range(len(args))))(*args))


def _assert_same(function, *args, tolerance=1e-5, slow=SLOW):
  """Compares values and gradients, relative to their norms; `slow` must be gone."""
  expected = jax.jit(_gradients(function))(*args)
  fast = _gradients(fast_convolutions(function))
  actual = jax.jit(fast)(*args)
  for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.shape == e.shape and a.dtype == e.dtype
    a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
    assert np.linalg.norm(a - e) <= tolerance * np.linalg.norm(e)
  assert _primitives(_gradients(function), *args) & SLOW
  assert not _primitives(fast, *args) & slow


NHWC = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}
CONVOLUTIONS = {
  '2d': ((2, 9, 8, 3), (3, 3, 3, 4), NHWC),
  'strides, both dilations, padding': (
    (2, 9, 8, 3),
    (3, 2, 3, 4),
    {
      **NHWC,
      'window_strides': (2, 1),
      'padding': ((1, 2), (0, -1)),
      'lhs_dilation': (2, 3),
      'rhs_dilation': (1, 2),
    },
  ),
  'winograd': ((2, 9, 8, 16), (3, 3, 16, 17), NHWC),
  'NCHW': ((2, 3, 9, 8), (4, 3, 3, 3), {'padding': 'VALID'}),
  'groups': ((2, 6, 9, 8), (9, 2, 3, 3), {'feature_group_count': 3}),
  'depthwise': ((2, 9, 8, 4), (3, 3, 1, 8), {**NHWC, 'feature_group_count': 4}),
  'mixed layouts': ((9, 2, 8, 3), (4, 2, 3, 3), {'dimension_numbers': ('HNWC', 'OHIW', 'WCHN')}),
  '1d': ((2, 9, 3), (3, 3, 4), {'dimension_numbers': ('NWC', 'WIO', 'NWC'), 'padding': 'VALID'}),
  '3d': ((2, 4, 6, 4, 3), (2, 2, 3, 3, 4), {'dimension_numbers': ('NHWDC', 'HWDIO', 'NHWDC')}),
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', CONVOLUTIONS)
def test_a_zoo_of_convolutions(kind):
  shape, kernel, options = CONVOLUTIONS[kind]
  options = {'window_strides': (1,) * (len(shape) - 2), 'padding': 'SAME', **options}
  function = lambda x, k: lax.conv_general_dilated(x, k, **options)
  _assert_same(function, _array(0, *shape), _array(1, *kernel))


POOLS = {
  'overlap': ((1, 3, 3, 1), (1, 2, 2, 1), 'SAME'),
  'no overlap': ((1, 2, 2, 1), (1, 2, 2, 1), 'VALID'),
  'gaps and padding': ((1, 2, 3, 1), (1, 3, 2, 1), ((0, 0), (0, 2), (1, 0), (0, 0))),
  'every axis': ((2, 2, 2, 3), (1, 2, 1, 3), 'SAME'),
}


@pytest.mark.first(1)
@pytest.mark.parametrize('kind', POOLS)
def test_max_pooling_with_ties(kind):
  # Three distinct values only, so that most windows tie.
  x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (2, 7, 9, 4)), jnp.float32)
  pooled = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, *POOLS[kind])
  _assert_same(pooled, x, tolerance=1e-6)


@jax.custom_vjp
def _doubled(x, k):
  return _conv(x, k)


def _conv(x, k):
  return lax.conv_general_dilated(x, k, (1, 1), 'SAME', **NHWC)


_doubled.defvjp(
  lambda x, k: (_doubled(x, k), (x, k)),
  lambda kept, g: tuple(2 * d for d in jax.vjp(_conv, *kept)[1](g)),
)


@jax.custom_jvp
def _halved(x, k):
  return _conv(x, k)


@_halved.defjvp
def _halved_jvp(primals, tangents):
  return _conv(*primals), 0.5 * jax.jvp(_conv, primals, tangents)[1]


def _scanned(x, ks):
  return lax.scan(lambda x, k: (jnp.tanh(_conv(x, k)), x.sum()), x, ks)[0]


HOLDERS = {
  'jit': lambda x, ks: jax.jit(_conv)(jax.jit(_conv)(x, ks[0]), ks[1]),
  'scan': _scanned,
  'scan of remat of scan': lambda x, ks: lax.scan(
    lambda x, k: (jax.checkpoint(_scanned)(x, ks) * k.sum(), None), x, ks
  )[0],
  'remat': lambda x, ks: jax.checkpoint(lambda x: jnp.tanh(_conv(x, ks[0])))(x),
  'cond': lambda x, ks: lax.cond(x.sum() > 0, lambda: _conv(x, ks[0]), lambda: _conv(x, ks[1])),
  'switch': lambda x, ks: lax.switch(1, [lambda k=k: _conv(x, k) for k in ks]),
  'vmap': lambda x, ks: jax.vmap(_conv, (None, 0))(x, ks),
  'loop': lambda x, ks: lax.fori_loop(0, 2, lambda i, x: jnp.tanh(_conv(x, ks[i])), x),
}


@pytest.mark.first(2)
@pytest.mark.parametrize('holder', HOLDERS)
def test_inside_whatever_holds_it(holder):
  _assert_same(HOLDERS[holder], _array(0, 2, 5, 5, 3), 0.2 * _array(1, 3, 3, 3, 3, 3))


def test_inside_a_while_loop():
  stop = lambda c: (c[0] < 3) & (_conv(c[1], c[2]).max() < 1e9)
  step = lambda c: (c[0] + 1, jnp.tanh(_conv(c[1], c[2])), c[2])
  function = lambda x, k: lax.while_loop(stop, step, (0, x, k))[1]
  x, k = _array(0, 2, 5, 5, 3), _array(1, 3, 3, 3, 3)
  np.testing.assert_allclose(fast_convolutions(function)(x, k), function(x, k), atol=1e-5)
  assert not _primitives(fast_convolutions(function), x, k) & SLOW


@pytest.mark.slow
@pytest.mark.parametrize('rule', [_doubled, _halved])
def test_derivatives_of_ones_own_are_kept(rule):
  # The rule still convolves as it is written; the value no longer does.
  x, k = _array(0, 2, 5, 5, 3), _array(1, 3, 3, 3, 3)
  _assert_same(rule, x, k, slow=set())
  assert not _primitives(fast_convolutions(rule), x, k) & SLOW


@pytest.mark.slow
@pytest.mark.parametrize(
  'dtype, out', [(jnp.bfloat16, None), (jnp.float16, None), (jnp.bfloat16, jnp.float32)]
)
def test_dtypes_stay(dtype, out):
  function = lambda x, k: lax.conv_general_dilated(
    x, k, (1, 1), 'SAME', **NHWC, preferred_element_type=out, precision='highest'
  )
  x, k = _array(0, 2, 9, 8, 16, dtype=dtype), _array(1, 3, 3, 16, 17, dtype=dtype)
  # Both round gradients to 16 bits, of which the last may differ.
  _assert_same(function, x, k, tolerance=2e-2)
  exact = function(*(v.astype(jnp.float32) for v in (x, k)))
  error = fast_convolutions(function)(x, k).astype(jnp.float32) - exact
  assert np.linalg.norm(error) <= (4e-3 if out is None else 1e-5) * np.linalg.norm(exact)


class _Cnn(nn.Module):
  """Layers of flax with all that a model may have: dropout, remat, max and average pooling."""

  @nn.compact
  def __call__(self, x, train=True):
    x = nn.remat(nn.Conv)(4, (3, 3))(x)
    x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), 'SAME')
    x = nn.avg_pool(nn.gelu(nn.Conv(4, (3, 3), feature_group_count=2)(x)), (2, 2), (2, 2))
    x = nn.Dropout(0.5, deterministic=not train)(nn.GroupNorm(2)(x))
    return nn.Dense(3)(x.reshape(len(x), -1))


@pytest.mark.slow
@jax.numpy_dtype_promotion('standard')  # flax divides a float by an integer
def test_weights_of_each_client_in_a_flax_model():
  module, x, key = _Cnn(), _array(0, 2, 8, 8, 2), jax.random.key(3)
  params = module.init(jax.random.key(0), x, train=False)
  clients = jax.tree.map(lambda p: jnp.stack([p, 1.1 * p]), params)
  loss = lambda p, x, key: module.apply(p, x, rngs={'dropout': key})
  each = lambda loss: jax.vmap(jax.grad(lambda p: jnp.sin(loss(p, x, key)).sum()))
  fast = each(fast_convolutions(loss))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, jax.jit(fast)(clients), jax.jit(each(loss))(clients))
  assert not _primitives(fast, clients) & SLOW


def test_nothing_else_changes():
  mlp = nn.Sequential([nn.Dense(8), nn.gelu, nn.Dropout(0.5, deterministic=False), nn.Dense(3)])
  x, key = _array(0, 2, 4), jax.random.key(1)
  params = jax.eval_shape(mlp.init, {'params': key, 'dropout': key}, x)

  def loss(params, x, key, scale, norm=None):
    y = jax.checkpoint(lambda p: mlp.apply(p, x, rngs={'dropout': key}))(params)
    y = lax.scan(lambda c, row: (c + row, c), jnp.zeros(3, jnp.bfloat16), y.astype(jnp.bfloat16))
    jax.debug.callback(lambda total: None, y[0])
    assert isinstance(scale, float) and norm is None
    return {'value': scale * y[0], 'of': (y[1], lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x))}

  args = params, x, key
  for function in (
    lambda *a: loss(*a, 2.0),
    lambda p, x, k: jax.grad(lambda p: loss(p, x, k, 2.0)['value'].astype(float).sum())(p),
  ):
    text = str(jax.make_jaxpr(function)(*args))
    assert str(jax.make_jaxpr(fast_convolutions(function))(*args)) == text
  assert str(jax.make_jaxpr(lambda *a: fast_convolutions(loss)(*a, scale=2.0))(*args)) == str(
    jax.make_jaxpr(lambda *a: loss(*a, 2.0))(*args)
  )


def test_the_rest_of_a_jaxpr_stays_in_its_order():
  function = lambda x, k: jnp.tanh(_conv(jnp.sin(x), k)) + jax.nn.relu(x)
  args = _array(0, 2, 5, 5, 3), _array(1, 3, 3, 3, 3)
  kinds = lambda f: [e.primitive.name for e in jax.make_jaxpr(f)(*args).jaxpr.eqns]
  names = ['jit' if x == 'conv_general_dilated' else x for x in kinds(function)]
  assert kinds(fast_convolutions(function)) == names


def test_values_closed_over_are_differentiated():
  x, k = _array(0, 2, 5, 5, 3), _array(1, 3, 3, 3, 3)
  outer = lambda wrap: lambda k: wrap(lambda x: _conv(x, k) * k.sum())(x)
  gradient = lambda wrap: jax.jit(jax.grad(lambda k: outer(wrap)(k).sum()))(k)
  np.testing.assert_allclose(gradient(fast_convolutions), gradient(lambda f: f), rtol=1e-4)


def test_under_shard_map_that_checks_axes():
  mesh = jax.make_mesh((1,), ('clients',), axis_types=(AxisType.Auto,))
  spec, x, k = PartitionSpec('clients'), _array(0, 1, 2, 5, 5, 3), _array(1, 3, 3, 3, 3)
  mapped = jax.shard_map(
    lambda x: fast_convolutions(_conv)(x[0], k)[None], mesh=mesh, in_specs=spec, out_specs=spec
  )
  np.testing.assert_allclose(jax.jit(mapped)(x)[0], _conv(x[0], k), atol=1e-5)


def test_traced_once_and_only_once():
  calls = []
  counted = fast_convolutions(lambda x, k: calls.append(1) or _conv(x, k))
  twice = fast_convolutions(counted)
  assert twice is counted and counted.__wrapped__ is not counted
  run = jax.jit(counted)
  x, k = _array(0, 2, 5, 5, 3), _array(1, 3, 3, 3, 3)
  for _ in range(2):
    run(x, k)
  assert calls == [1]


def test_left_alone_elsewhere_and_where_it_is_marked(monkeypatch):
  args = _array(0, 2, 5, 5, 3), _array(1, 3, 3, 3, 3)
  for platform in ('gpu', 'tpu', 'cuda'):
    assert 'conv_general_dilated' in _primitives(fast_convolutions(_conv, platform=platform), *args)
  own = as_it_is(lambda x, k: _conv(x, k))
  assert fast_convolutions(own) is own
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert 'conv_general_dilated' in _primitives(fast_convolutions(_conv), *args)


UNFIT = {
  'integers': lambda x, k: _conv(x.astype(jnp.int32), k.astype(jnp.int32)),
  'complex': lambda x, k: _conv(x.astype(jnp.complex64), k.astype(jnp.complex64)),
  'batch groups': lambda x, k: lax.conv_general_dilated(
    x, k, (1, 1), 'SAME', **NHWC, batch_group_count=3
  ),
  'empty': lambda x, k: _conv(x[:0], k),
}


@pytest.mark.parametrize('kind', UNFIT)
def test_what_does_not_fit_is_left(kind):
  args = _array(0, 3, 5, 5, 3), _array(1, 3, 3, 3, 3)
  text = str(jax.make_jaxpr(UNFIT[kind])(*args))
  assert str(jax.make_jaxpr(fast_convolutions(UNFIT[kind]))(*args)) == text


def test_warns_once_of_what_is_left_and_names_the_remedy():
  x, k = _array(0, 3, 7, 5, 3), _array(1, 3, 3, 3, 3)
  left = lambda x: jax.lax.map(lambda x: UNFIT['batch groups'](x, k), x)
  jaxpr = jax.make_jaxpr(fast_convolutions(left))(x[None])
  with pytest.warns(
    UserWarning, match=r'conv_general_dilated of float32\[3,7,5,3\].*models\.fast_'
  ):
    warn_if_slow(jaxpr, 'cpu')
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    warn_if_slow(jaxpr, 'cpu')
    warn_if_slow(jax.make_jaxpr(UNFIT['batch groups'])(x, k), 'gpu')
    warn_if_slow(
      jax.make_jaxpr(lambda x: conv.conv_general_dilated(x, k, (1, 1), 'SAME', **NHWC))(x), 'cpu'
    )


def test_an_array_of_text_is_static():
  scaled = fast_convolutions(lambda x, names: x * len(names))
  assert scaled(jnp.ones(2), np.array(['a', 'b', 'c'])).tolist() == [3.0, 3.0]
