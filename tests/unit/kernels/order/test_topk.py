"""Top-k against a stable sort in NumPy, index for index."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.loops import parts
from fedjax_mem.kernels.order import kth, topk

# Sizes around those of words, blocks, the sample and parts, and of each some k.
SIZES = (
  (1, 1),
  (33, 32),
  (kth.BLOCK - 1, 200),
  (kth.BLOCK + topk.BLOCK, 600),
  (kth.LEAST, 800),
  (kth.LEAST + 1, 8000),
  (parts.SMALL, 1),
  (parts.SMALL + 1, 3300),
  (2 * parts.SMALL - 1, 2 * parts.SMALL - 1),
)
SIZE, K = SIZES[-2]
HALF = SIZES[5]
KINDS = ('normal', 'ties', 'zeros', 'equal', 'few', 'subnormal', 'special')
SAMPLED = (SIZE, K), HALF


def _keys(x):
  bits = np.asarray(x.astype(jnp.float32)).view(np.uint32) & np.uint32(0x7FFFFFFF)
  return np.minimum(bits, np.uint32(kth.NAN_KEY)).astype(np.int64)


def _twin(x, k):
  """Returns the ascending indices of the k largest magnitudes, ties to the lowest index."""
  return np.sort(np.argsort(-_keys(x), kind='stable')[:k])


def _vector(kind, size, dtype=jnp.float32):
  rng = np.random.default_rng(size)
  x = rng.standard_normal(size).astype(np.float32)
  if kind == 'ties':
    x = np.round(2 * x)
  if kind == 'zeros':
    x = np.zeros(size, np.float32)
  if kind == 'equal':
    x = np.sign(x) * np.float32(0.3)
  if kind == 'few':  # Fewer non-zeros than k, and zeros of both signs.
    x = np.where(rng.random(size) < 0.01, x, -0.0).astype(np.float32)
  if kind == 'subnormal':
    x = rng.integers(-5, 6, size).astype(np.int32).__abs__().astype(np.uint32).view(np.float32)
  if kind == 'special':
    x[rng.integers(0, size, 1 + size // 20)] = np.nan
    x[rng.integers(0, size, 1 + size // 20)] = -np.inf
    x[rng.integers(0, size, 1 + size // 20)] = np.inf
    x.view(np.uint32)[-1:] = 0xFFFFFFFF  # A NaN of another update.
  return jnp.asarray(x).astype(dtype)


def _equals(x, k, packed, kept, message=''):
  expected, x = _twin(x, k), np.asarray(x)
  (values, indices), (dense, words) = jax.device_get((packed, kept))
  assert indices.dtype == np.int32 and values.dtype == dense.dtype == x.dtype
  word = f'u{x.dtype.itemsize}'
  np.testing.assert_array_equal(indices, expected, message)
  np.testing.assert_array_equal(values.view(word), x[expected].view(word), message)
  bits = np.unpackbits(words.view(np.uint8), bitorder='little')
  assert words.shape == (-(-x.size // 32),)
  np.testing.assert_array_equal(np.flatnonzero(bits), expected, message)
  sparse = np.zeros_like(x)
  sparse[expected] = x[expected]
  np.testing.assert_array_equal(dense.view(word), sparse.view(word), message)


def _check(x, k, message=''):
  _equals(x, k, topk.pack(x, k), topk.kept(x, k), message)


@pytest.mark.slow
@pytest.mark.parametrize('size, k', SIZES)
def test_numpy_twin(size, k):
  for kind in KINDS:
    _check(_vector(kind, size), k, kind)


@pytest.mark.slow
def test_mask_and_threshold():
  size, k = SIZE, K
  for kind in KINDS:
    x = _vector(kind, size)
    chosen, least = topk.mask(x, k), topk.threshold(x, k)
    assert chosen.shape == (size,) and chosen.dtype == bool
    np.testing.assert_array_equal(np.flatnonzero(chosen), _twin(x, k), kind)
    assert int(least) == np.sort(_keys(x))[-k]


def _floats(bits):
  """Returns floats of the keys, of both signs in turn."""
  bits = np.asarray(bits, np.uint32)
  return jnp.asarray((bits | (np.arange(bits.size) % 2 << 31).astype(np.uint32)).view(np.float32))


def _sampled(size):
  """Returns whether each of 0 … size - 1 is in the sample."""
  chosen = np.zeros(size, bool)
  chosen[np.asarray(kth._sample(jnp.arange(size)))] = True
  shares = [part.mean() for part in np.array_split(chosen, 16)]
  assert np.ptp(shares) <= 0.1 * chosen.mean()
  return chosen


@pytest.mark.slow
@pytest.mark.parametrize('size, k', SAMPLED)
def test_sample_unlike_the_whole(size, k):
  sampled, small = _sampled(size), np.abs(_vector('normal', size))
  _check(jnp.where(sampled, small, 9 + small), k, 'all of the k beyond the range')
  _check(jnp.where(sampled, 9 + small, small), k, 'range above the k-th')
  _check(jnp.where(sampled, 0, small), k, 'sample of zeros')
  _check(jnp.where(sampled, jnp.nan, small), k, 'sample of NaNs')
  _check(jnp.where(sampled, small, jnp.nan), k, 'only the sample is not NaN')


@pytest.mark.slow
@pytest.mark.parametrize('size, k', SAMPLED)
def test_more_in_the_range_than_there_is_room_for(size, k):
  rng = np.random.default_rng(1)
  one_bin = (1 << 29) + rng.permutation(1 << kth.LOW)
  keys = np.resize(one_bin, size)
  _check(_floats(keys), k, 'all in one bin')


@pytest.mark.slow
def test_as_many_in_the_range_as_there_is_room_for_and_one_more():
  x = _vector('normal', SIZE)
  sampled = _sampled(SIZE)
  low, high, room = (int(end) for end in kth._range(x, K))
  for more in (0, 1):
    keys = np.where(sampled, _keys(x), 1 << 20)
    free = np.flatnonzero(~sampled[: SIZE // kth.BLOCK * kth.BLOCK])
    within = room + more - ((keys >= low) & (keys < high)).sum()
    keys[free[-within:]] = np.linspace(low, high - 1, within).astype(np.int64)
    larger = K - 20 - (keys >= high).sum()
    keys[free[:larger]] = 9 << 27
    assert ((keys >= low) & (keys < high)).sum() == room + more and low <= np.sort(keys)[-K] < high
    # The last within, which is one too many, is among the k.
    assert keys[free[-1]] >= np.sort(keys)[-K]
    _check(_floats(keys), K, str(more))


@pytest.mark.slow
@pytest.mark.first(2)
@pytest.mark.parametrize('beyond', [-2, -1, 0, 1])
@pytest.mark.parametrize('end', ['low', 'high'])
def test_ties_at_the_ends_of_the_range(end, beyond):
  x = np.asarray(_vector('normal', SIZE))
  sampled = _sampled(SIZE)
  low, high, _ = jax.device_get(kth._range(jnp.asarray(x), K))
  at = int(low if end == 'low' else high) + beyond
  keys = np.where(sampled, _keys(x), 1 << 20)
  # Values beyond the whole blocks are gone through apart.
  free = np.flatnonzero(~sampled)[::-1]
  assert free[0] == SIZE - 1 and free[20] // kth.BLOCK < free[0] // kth.BLOCK
  for ties, chosen in ((20, 5), (1, 1)):
    # Ties of the k-th, and their neighbours, of which the upper ones are among the k.
    keys[free] = 1 << 20
    keys[free[: 3 * ties]] = at + np.arange(3 * ties) % 3 - 1
    larger = K - (keys > at).sum() - chosen
    keys[free[60 : 60 + larger]] = (9 << 27) + np.arange(larger)
    assert np.sort(keys)[-K] == at and (keys == at).sum() == ties
    assert jax.device_get(kth._range(_floats(keys), K))[:2] == (low, high)
    _check(_floats(keys), K, str(ties))


@pytest.mark.slow
def test_range_of_usual_updates_is_narrow():
  """What is neither missed nor too much is not counted over again."""
  size, k = 2 * SIZE, 6000
  rng = np.random.default_rng(3)
  x = rng.standard_normal(size)
  rows = np.repeat(np.exp(rng.standard_normal(size // 128 + 1)), 128)[:size]
  columns = np.tile(np.exp(rng.standard_normal(128)), size // 128 + 1)[:size]
  layers = np.repeat(10.0 ** np.arange(-4, 0), size // 4 + 1)[:size]
  dead = np.tile(np.arange(128) < 64, size // 128 + 1)[:size]
  flat = x.copy()  # Both ends of the range in the same bin.
  flat[np.argsort(-np.abs(x))[k - 1500 : k + 1500]] = 2
  cases = x, rng.standard_t(1, size), x * rows, x * columns, x * layers, x * dead, x * (x > 0), flat
  bounds = jax.jit(lambda x: kth._range(x, k)[:2])
  room = kth._range(jnp.asarray(x), k)[2]
  assert room < size / 16
  for i, case in enumerate(cases):
    case = jnp.asarray(case, jnp.float32)
    low, high = (int(end) for end in bounds(case))
    assert low <= np.sort(_keys(case))[-k] < high, i
    assert ((_keys(case) >= low) & (_keys(case) < high)).sum() <= room, i


@pytest.mark.slow
def test_range_has_no_end_where_the_sample_tells_none():
  x = _vector('normal', SIZE)
  assert int(kth._range(x, SIZE)[0]) == 0
  assert int(kth._range(x, 1)[1]) == kth.NAN_KEY + 1


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_halves_keep_their_dtype(dtype):
  size, k = (SIZE, K) if dtype == jnp.bfloat16 else (700, 90)
  for kind in ('normal', 'special', 'zeros'):  # Seven or ten bits of mantissa: many ties.
    _check(_vector(kind, size, dtype), k)
  assert topk.unpack(*topk.pack(_vector('normal', size, dtype), k), size).dtype == dtype


@pytest.mark.slow
def test_nan_counts_as_larger_than_infinity():
  x = jnp.array([np.inf, -np.nan, 1e38, np.nan, -np.inf], jnp.float32)
  np.testing.assert_array_equal(topk.pack(x, 2)[1], [1, 3])
  np.testing.assert_array_equal(topk.pack(x, 3)[1], [0, 1, 3])


@pytest.mark.slow
def test_unpack_restores_what_was_chosen_and_is_idempotent():
  x = _vector('ties', SIZE)
  sent = topk.unpack(*topk.pack(x, K), SIZE)
  np.testing.assert_array_equal(sent, jnp.where(topk.mask(x, K), x, 0))
  np.testing.assert_array_equal(topk.unpack(*topk.pack(sent, K), SIZE), sent)


@pytest.mark.slow
def test_error_bound():
  x = _vector('normal', SIZE)
  rest = np.asarray(x - topk.unpack(*topk.pack(x, K), SIZE), np.float64)
  assert (rest**2).sum() <= (1 - K / SIZE) * (np.asarray(x, np.float64) ** 2).sum()


def _rows():
  """Returns vectors of which some are counted over again and some are not."""
  unlike = jnp.where(_sampled(SIZE), 0, _vector('normal', SIZE))
  return jnp.stack([unlike, *(_vector(kind, SIZE) for kind in ('normal', 'zeros', 'special'))])


def _both(x):
  return topk.pack(x, K), topk.kept(x, K)


def _scanned(rows):
  return jax.lax.scan(lambda carry, x: (carry, _both(x)), 0, rows)[1]


def _sharded(rows):
  mesh = jax.make_mesh((2,), ('clients',), axis_types=(jax.sharding.AxisType.Auto,))
  each = jax.sharding.PartitionSpec('clients')
  run = jax.shard_map(jax.vmap(_both), mesh=mesh, in_specs=each, out_specs=each, check_vma=False)
  return run(rows)


@pytest.mark.slow
@pytest.mark.parametrize('way', [jax.vmap(jax.vmap(_both)), _scanned, _sharded])
def test_several_vectors_as_one(way):
  rows = _rows()
  nested = way not in (_scanned, _sharded)
  out = jax.jit(way)(rows.reshape(2, 2, -1) if nested else rows)
  for i, x in enumerate(rows):
    at = divmod(i, 2) if nested else i
    _equals(x, K, *jax.tree.map(lambda x, at=at: x[at], out), str(i))


@pytest.mark.first(1)
@pytest.mark.parametrize('size', [1, 7, 128, 129, 1031, 8 * 1031])
def test_before(size):
  values = np.random.default_rng(size).integers(0, 33, size).astype(np.int32)
  np.testing.assert_array_equal(kth.before(jnp.asarray(values)), np.cumsum(values) - values)


@pytest.mark.first(1)
@pytest.mark.parametrize('room', [1, 500, kth.SLOTS, 2 * kth.SLOTS + 3])
def test_each_set(room):
  run = jax.jit(functools.partial(kth.each_set, f=lambda word, bit: 32 * word + bit))
  rng = np.random.default_rng(room)
  for share in (0, 0.01, 0.5, 1):
    bits = rng.random(32 * 300) < share
    bits[: 32 * 10] = False
    words = np.packbits(bits, bitorder='little').view(np.uint32)
    out, total = run(jnp.asarray(words), jnp.full(room, -1, jnp.int32))
    found = np.flatnonzero(bits)
    assert total == found.size
    expected = np.concatenate([found[:room], np.full(max(0, room - found.size), -1)])
    np.testing.assert_array_equal(out, expected)


@pytest.mark.slow
def test_second_call_does_not_compile():
  pack = jax.jit(lambda x: topk.pack(x, 10))
  pack(_vector('normal', 1000))
  pack(_vector('zeros', 1000))
  assert pack._cache_size() == 1


@pytest.mark.parametrize('k', [0, -1, 11, 2.0])
def test_bad_k(k):
  with pytest.raises(ValueError, match='k must be'):
    topk.mask(jnp.ones(10), k)


def test_not_a_vector():
  with pytest.raises(ValueError, match='x must be one flat vector'):
    topk.pack(jnp.ones((2, 5)), 1)
