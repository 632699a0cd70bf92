"""Codes of vectors: bytes to the byte, NumPy twins, unbiasedness, stated errors, edge cases."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.core import UNKNOWN, Bound, Message, wire
from fedjax_mem.kernels.codes import rotate as rotation
from fedjax_mem.stages import compress
from fedjax_mem.stages.compress import _base as codecs

SHAPES = ((7,), (), (5, 11, 3), (64, 2))
D = codecs.size(SHAPES)
MAKE = {
  'top_k': lambda: compress.top_k(0.1),
  'top_k of few': lambda: compress.top_k(k=3),
  'top_k of most': lambda: compress.top_k(0.9),
  'top_k per leaf': lambda: compress.top_k(0.2, per_leaf=True),
  'k per leaf': lambda: compress.top_k(k=4, per_leaf=True),
  'random_k': lambda: compress.random_k(0.2),
  'random_k unscaled': lambda: compress.random_k(k=40, unbiased=False),
  'quantize': compress.quantize,
  'quantize 1': lambda: compress.quantize(1, block=16),
  'quantize 3 per leaf': lambda: compress.quantize(3, block=None),
  'qsgd': lambda: compress.quantize(3, block=64, scale='l2'),
  'rounded': lambda: compress.quantize(4, stochastic=False, block=32),
  'sign': compress.sign,
  'sign per leaf': lambda: compress.sign(per_leaf=True),
  'ternary': compress.ternary,
  'ternary clipped': lambda: compress.ternary(clip=2.5, block=50),
  'rotate': compress.rotate,
  'drive': compress.drive,
  'drive biased': lambda: compress.drive(unbiased=False, block=64),
  'eden 1': lambda: compress.eden(1),
  'eden 3': lambda: compress.eden(3, block=128),
  'eden 4': lambda: compress.eden(4, block=16),
  'top_k, quantize': lambda: compress.chain(compress.top_k(0.1), compress.quantize(5)),
  'rotate, quantize': lambda: compress.chain('rotate', {'use': 'quantize', 'bits': 2}),
  'rotate, random_k': lambda: compress.chain('rotate', {'use': 'random_k', 'fraction': 0.5}),
  'random_k, eden': lambda: compress.chain({'use': 'random_k', 'k': 128}, 'eden'),
}
NAMES = list(MAKE)
QUICK = ('top_k', 'random_k', 'quantize', 'rounded', 'sign', 'ternary', 'top_k, quantize')


# Every kind of part on the wire.
MORE = ('eden 3', 'drive', 'rotate', 'sign per leaf', 'random_k, eden', 'k per leaf')


def slowly(names, more=()):
  """Returns the names, those that are like others marked slow."""
  return [n if n in (*QUICK, *more) else pytest.param(n, marks=pytest.mark.slow) for n in names]


@functools.cache
def codec(name):
  return compress.codec_of(codec=MAKE[name]())


def vector(seed=0, size=D, heavy=True):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=size) * (np.exp(rng.normal(size=size)) if heavy else 1)
  return x.astype(np.float32)


def draws(seed=0, own=None):
  key = jax.random.key(seed)
  return codecs.Keys(jax.random.fold_in(key, 1 if own is None else own), key)


@functools.cache
def compiled(name):
  """Returns (draws, x) -> (code, decoded, bytes) of a codec, compiled."""
  c = codec(name)

  def both(d, x):
    code = c.encode(d, x, SHAPES)
    return code, c.decode(d, code, SHAPES), codecs.nbytes(codecs.parts_of(code))

  return jax.jit(both)


@functools.cache
def repeated(name):
  """Returns (x, n) -> what is decoded of x with n different draws, [n, D]."""
  one = lambda i, x: compiled(name)(_drawn(i), x)[1]
  many = jax.jit(jax.vmap(one, (0, None)))
  return lambda x, n: np.asarray(many(jnp.arange(n), x), np.float64)


def _drawn(i):
  key = jax.random.key(77)
  return codecs.Keys(jax.random.fold_in(key, 2 * i), jax.random.fold_in(key, 2 * i + 1))


def decoded(name, x, seed=0, own=None):
  return np.asarray(compiled(name)(draws(seed, own), x)[1])


@pytest.mark.slow
@pytest.mark.parametrize('name', slowly(NAMES, MORE))
def test_bytes_are_those_of_the_wire_and_survive_it(name):
  decode = jax.jit(lambda d, c: codec(name).decode(d, c, SHAPES))
  for seed in range(3):
    code, expected, size = compiled(name)(draws(seed), vector(seed))
    data = codecs.to_bytes(code, 2.5)
    assert len(data) == int(size)
    back, weight = codecs.from_bytes(codec(name), data, SHAPES)
    assert weight == 2.5 and jax.tree.structure(back) == jax.tree.structure(code)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(code), strict=True):
      assert a.dtype == b.dtype
      np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(decode(draws(seed), back), expected)
  with pytest.raises(ValueError):
    codecs.from_bytes(codec(name), data[:-1], SHAPES)
  if name not in ('random_k unscaled', 'random_k, eden'):  # k values, however many there are
    with pytest.raises(ValueError, match='must'):
      codecs.from_bytes(codec(name), data, (*SHAPES, (400,)))


def test_the_bytes_of_sums_beside_the_update():
  code, _, _ = compiled('sign')(draws(), vector())
  aux = {'bit': jnp.float32(1), 'counts': jnp.zeros((2, 3))}
  data = codecs.to_bytes(code, 1.0, aux)
  assert len(data) == int(codecs.nbytes(codecs.parts_of(code), aux))
  update = {'a': jnp.zeros((3, 5)), 'b': jnp.zeros(4, jnp.bfloat16)}
  raw = [wire.Raw(np.zeros(68, np.uint8)), wire.Floats(np.zeros(7))]
  assert codecs.dense_size(update, aux) == len(wire.encode(1.0, raw))
  assert codecs.dense_size(update) == len(wire.encode(1.0, raw[:1]))


@pytest.mark.parametrize('gap', [1, 127, 128, 129, 16383, 16384, 16385, 2**21, 2**21 + 1])
def test_the_bytes_of_indices_at_the_edges_of_their_forms(gap):
  places = np.cumsum([gap - 1, 1, gap, gap]).astype(np.int32)
  for size in (int(places[-1]) + 1, 10**7, 2**31 - 1):
    part = wire.Indices(places, size)
    assert int(codecs.nbytes([part])) == len(wire.encode(1.0, [part]))
  dense = wire.Indices(np.arange(0, 64, 2, dtype=np.int32), 64)  # 8 bytes as a bitmap
  assert int(codecs.nbytes([dense])) == len(wire.encode(1.0, [dense])) == 15 + 18 + 8


# NumPy twins.


def largest(x, k):
  """Returns x but for its k largest magnitudes zero; of equals, the first."""
  kept = np.lexsort((np.arange(x.size), -np.abs(x)))[:k]
  out = np.zeros_like(x)
  out[kept] = x[kept]
  return out


def leaves(x):
  return np.split(x, np.cumsum([math.prod(s) for s in SHAPES])[:-1])


def rounded(x, bits, scale):
  """Returns the nearest of the levels on [-scale, scale]."""
  count = 2 if bits == 1 else 2**bits - 1
  grid = np.linspace(-scale, scale, count)
  return grid[np.abs(x[:, None].astype(np.float64) - grid).argmin(1)]


TWINS = {
  'top_k': lambda x: largest(x, round(0.1 * D)),
  'top_k of few': lambda x: largest(x, 3),
  'top_k per leaf': lambda x: np.concatenate(
    [largest(v, max(1, round(0.2 * v.size))) for v in leaves(x)]
  ),
  'k per leaf': lambda x: np.concatenate([largest(v, min(4, v.size)) for v in leaves(x)]),
  'rounded': lambda x: np.concatenate(
    [rounded(v, 4, np.abs(v).max()) for v in np.split(x, range(32, D, 32))]
  ),
  'sign': lambda x: np.where(x >= 0, 1, -1) * np.abs(x).mean(),
  'sign per leaf': lambda x: np.concatenate(
    [np.where(v >= 0, 1, -1) * np.abs(v).mean() for v in leaves(x)]
  ),
  'rotate': lambda x: x,
}


@pytest.mark.slow
@pytest.mark.parametrize('name', TWINS)
def test_a_codec_without_chance_equals_its_numpy_twin(name):
  for seed in range(3):
    x = vector(seed)
    x[3] = x[40] = x[41] = -np.abs(x).max()  # ties
    x[5] = 0
    np.testing.assert_allclose(decoded(name, x), TWINS[name](x), rtol=2e-6, atol=2e-6)


@pytest.mark.slow
def test_random_k_keeps_the_same_places_for_everyone_and_scales_them():
  x, y = vector(0), vector(1)
  a, b = (decoded('random_k', v, seed=4, own=i) for i, v in enumerate((x, y)))
  kept = a != 0
  assert kept.sum() == round(0.2 * D)
  np.testing.assert_array_equal(kept, b != 0)
  np.testing.assert_allclose(a[kept], x[kept] * D / kept.sum(), rtol=1e-6)
  assert (kept != (decoded('random_k', x, seed=5) != 0)).any()
  # Codes add: the decoded sum is the sum of what is decoded.
  c, d = codec('random_k'), draws(4)
  total = codecs.Code((), sum(c.encode(d, jnp.asarray(v), SHAPES).rest for v in (x, y)))
  np.testing.assert_allclose(c.decode(d, total, SHAPES), a + b, rtol=1e-6, atol=1e-5)


def test_eden_equals_a_dense_hadamard_twin():
  x, block, bits = vector(), 128, 3
  centres = rotation.centroids(bits).astype(np.float64)
  h = np.array([[1.0]])
  while len(h) < block:
    h = np.block([[h, h], [h, -h]])
  h /= np.sqrt(block)
  # One tile, its blocks the columns.
  tile = np.pad(x, (0, -D % block)).reshape(block, -1).astype(np.float64)
  ones = jnp.ones(tile.size, jnp.float32)
  signs = np.round(h @ np.asarray(rotation.rotate(draws().own, ones, block)).reshape(block, -1))
  turned = h @ (tile * signs)
  unit = turned / np.sqrt((turned**2).mean(0))
  q = centres[np.abs(unit[..., None] - centres).argmin(-1)]
  scale = (turned**2).sum(0) / (turned * q).sum(0)
  expected = (h @ (q * scale) * signs).reshape(-1)[:D]
  np.testing.assert_allclose(decoded('eden 3', x), expected, rtol=1e-4, atol=1e-4)


def test_rounding_at_random_only_goes_to_the_levels_next_to_a_value():
  x = vector()
  step = 2 * np.abs(x).max() / 254
  assert np.abs(decoded('quantize', x) - x).max() < step * (1 + 1e-5)
  levels = decoded('ternary clipped', x)[:50]
  limit = min(2.5 * x[:50].astype(np.float64).std(), np.abs(x[:50]).max())
  assert set(np.round(np.abs(levels) / limit, 5)) <= {0.0, 1.0}


# By the short way.

SHORT = ('top_k', 'top_k of few', 'top_k of most', 'eden 1', 'eden 3', 'eden 4')


def _odd_vectors():
  """Returns vectors with what the short way might get wrong."""
  tied = np.round(vector())
  bad = [np.where(np.arange(D) == 100, value, vector()) for value in (np.nan, np.inf, -np.inf)]
  return np.stack([vector(), tied, np.zeros(D), -np.zeros(D), *bad]).astype(np.float32)


def test_all_codecs_with_a_short_way_are_tested():
  assert set(SHORT) == {name for name in NAMES if codec(name).estimate}


@pytest.mark.slow
@pytest.mark.parametrize('name', SHORT)
def test_the_short_way_is_encoding_and_decoding(name):
  def estimate(d, x):
    values, indices = codec(name).estimate(d, codecs.split(x, SHAPES), SHAPES)
    assert [v.shape for v in values] == [(np.prod(shape),) for shape in SHAPES]
    return jnp.concatenate(values), indices

  short = jax.jit(estimate)
  for x in _odd_vectors():
    code, expected, size = compiled(name)(draws(3), x)
    values, indices = short(draws(3), x)
    np.testing.assert_array_equal(_bits(values), _bits(expected))
    assert int(indices) + codecs.fixed_size(codecs.parts_of(code)) == int(size)
    assert np.isfinite(values).all() == np.isfinite(x).all()
  several = jax.vmap(short, (None, 0))(draws(3), _odd_vectors())
  one = jax.tree.map(lambda *x: jnp.stack(x), *[short(draws(3), x) for x in _odd_vectors()])
  np.testing.assert_array_equal(several[1], one[1])
  np.testing.assert_allclose(several[0], one[0], rtol=1e-5, atol=1e-6)


def _bits(x):
  """Returns the bits of floats, all NaNs alike."""
  return np.where(np.isnan(x), np.float32(np.nan), x).view(np.uint32)


@pytest.mark.first(5)
@pytest.mark.parametrize('size', [1, 31, 128, 129, 5000, 40_000, 2**21 + 70_000])
def test_bytes_of_a_mask_are_those_of_its_indices(size):
  rng = np.random.default_rng(size)
  count = jax.jit(lambda words: codecs.mask_size(words, size))
  # From bitmaps to gaps of three bytes, at the edges of one and two.
  for share in (0.5, 0.1, 0.01, 0.003, 2 / size):
    chosen = np.flatnonzero(rng.random(size) < share)
    edges = [i for i in (0, 127, 128, 16383 + 129, 16384 + 16514, size - 1) if i < size]
    longest = [i for i in (5, 5 + 2**21, 6 + 2**22) if i < size]
    for indices in (
      chosen,
      edges,
      longest,
      [size - 1],
      *([i] for i in (127, 128, 129) if i < size),
    ):
      flags = np.zeros(-(-size // 32) * 32, bool)
      flags[indices] = True
      if not flags.any():
        continue
      words = np.packbits(flags, bitorder='little').view(np.uint32)
      part = wire.Indices(np.flatnonzero(flags).astype(np.int32), size)
      expected = len(wire.encode(1.0, [part])) - codecs.fixed_size([part])
      assert int(count(words)) == expected


# What is stated of them.


@pytest.mark.slow
@pytest.mark.parametrize('name', slowly(NAMES))
def test_the_error_is_within_the_stated_bound(name):
  stated = codec(name).error(SHAPES)
  if stated is None:
    return
  for seed in range(4):
    x = vector(seed, heavy=seed < 2)
    errors = ((repeated(name)(x, 3000)[:400] - x) ** 2).sum(1) / (x.astype(np.float64) ** 2).sum()
    slack = 4 * errors.std() / np.sqrt(len(errors)) + 1e-6
    assert errors.mean() <= stated + slack
    if codec(name).name in ('top_k', 'sign'):
      assert errors.max() <= stated + 1e-6


EXACTLY = [n for n in NAMES if n != 'drive' and 'eden' not in n]


@pytest.mark.first(1)
@pytest.mark.parametrize('name', slowly(EXACTLY))
def test_unbiased_where_claimed_and_only_there(name):
  """z-test of every coordinate over draws: |mean - x| in units of its standard error."""
  x, n = vector(2), 3000
  out = repeated(name)(x, n)
  spread = out.std(0, ddof=1) / np.sqrt(n)
  # What is hardly ever rounded up has hardly a spread in so few draws.
  least = max(np.sqrt(np.mean(spread**2)) / 4, 2e-6 * np.abs(x).max())
  z = np.abs(out.mean(0) - x) / np.maximum(spread, least)
  if codec(name).unbiased:
    assert z.max() < 5 and np.mean(z**2) < 1.3
  else:
    assert z.max() > 5


@pytest.mark.first(1)
@pytest.mark.parametrize(
  'name, limit', [('drive', 0.62), ('eden 1', 0.62), ('eden 3', 0.05), ('drive biased', 0.4)]
)
def test_rotated_codecs_have_the_errors_of_the_table_and_little_bias(name, limit):
  x = vector(3, heavy=False)
  out = repeated(name)(x, 3000)
  relative = ((out - x) ** 2).sum(1).mean() / (x**2).sum()
  bias = ((out.mean(0) - x) ** 2).sum() / (x**2).sum()
  assert relative < limit
  if codec(name).unbiased:
    assert bias < 0.01
  else:
    assert bias > 0.05


@pytest.mark.first(1)
@pytest.mark.parametrize(
  'name', ['top_k', 'top_k of most', 'k per leaf', 'random_k unscaled', 'rounded']
)
def test_encoding_what_was_decoded_changes_nothing(name):
  once = decoded(name, vector(6), seed=9)
  tolerance = 1e-6 if name == 'rounded' else 0
  np.testing.assert_allclose(decoded(name, once, seed=9), once, rtol=tolerance)


@pytest.mark.first(7)
@pytest.mark.parametrize('name', slowly(NAMES, MORE))
def test_zeros_are_decoded_to_zeros(name):
  code, out, size = compiled(name)(draws(), np.zeros(D, np.float32))
  assert (np.asarray(out) == 0).all()
  assert len(codecs.to_bytes(code, 1.0)) == int(size)


@pytest.mark.slow
@pytest.mark.parametrize('name', slowly(NAMES, MORE))
def test_no_stated_norm_grows(name):
  bound = codec(name).bounds.of(None, Bound(1.0, 1.0, 1.0))
  orders = {'l1': 1, 'l2': 2, 'linf': np.inf}
  for seed in range(5):
    x = vector(seed).astype(np.float64)
    out = decoded(name, x.astype(np.float32)).astype(np.float64)
    for kind, order in orders.items():
      if getattr(bound, kind) != UNKNOWN:
        assert getattr(bound, kind) == 1.0
        assert np.linalg.norm(out, order) <= np.linalg.norm(x, order) * (1 + 1e-5)


def test_which_norms_are_stated():
  states = {n: codec(n).bounds.of(None, Bound(1.0, 1.0, 1.0)) for n in NAMES}
  whole = {n for n, b in states.items() if b == Bound(1.0, 1.0, 1.0)}
  assert whole == {n for n in NAMES if n.startswith(('top_k', 'k per', 'sign'))} - {
    'top_k, quantize'
  } | {'random_k unscaled'}
  assert {n for n, b in states.items() if b == Bound(l2=1.0)} == {'rotate', 'drive biased'}
  assert {n for n, b in states.items() if b == Bound()} >= {'quantize', 'random_k', 'eden 3'}


@pytest.mark.slow
@pytest.mark.parametrize('value', [2.5, np.nan])
def test_whoever_takes_no_part_sends_zeros_and_no_bytes(value):
  update = {'a': jnp.full((3, 5), value), 'b': jnp.full(70, -value)}
  key = jax.random.key(0)
  ctx = types.SimpleNamespace(key=key, round_key=jax.random.key(1))
  for layer in (
    compress.top_k(0.2),
    compress.random_k(0.2),
    compress.quantize(1, block=None),
    compress.quantize(8),
    compress.sign(),
    compress.ternary(),
    compress.rotate(),
    compress.drive(),
    compress.eden(),
    compress.chain('rotate', 'quantize'),
  ):
    for weight in (0.0, 1.0):
      message = Message(update, jnp.float32(weight), {})
      out, _, metrics = layer.client.apply(ctx, message, ())
      zeros = all((np.asarray(x) == 0).all() for x in jax.tree.leaves(out.update))
      assert zeros == (weight == 0), layer.name
      assert (metrics['bytes_up_low'].value == 0) == (weight == 0), layer.name
