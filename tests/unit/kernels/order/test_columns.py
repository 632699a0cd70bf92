"""Order statistics of columns against NumPy's sort, with rows that do not count."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.order import columns

ON = np.array([True, True, False, True, True, True, False, True])
RNG = np.random.default_rng(0)


def _cases():
  normal = RNG.normal(size=(8, 300)).astype(np.float32)
  tied = RNG.integers(-2, 3, size=(8, 70)).astype(np.float32)
  huge = (normal * 10.0 ** RNG.integers(-30, 30, size=(8, 300))).astype(np.float32)
  same = np.full((8, 5), -1.5, np.float32)
  zeros = np.zeros((8, 3), np.float32)
  zeros[1] = -0.0
  return {'normal': normal, 'tied': tied, 'huge': huge, 'same': same, 'zeros': zeros}


CASES = _cases()


@pytest.fixture(params=list(CASES))
def x(request):
  return CASES[request.param]


def _dirty(x):
  """Returns x with rubbish in the rows that do not count."""
  x = x.copy()
  x[2], x[6] = np.nan, -np.inf
  return jnp.asarray(x)


@pytest.mark.slow
def test_median(x):
  found = columns.median(_dirty(x), jnp.asarray(ON))
  ordered = np.sort(x[ON], 0)
  np.testing.assert_array_equal(found, ordered[2] * np.float32(0.5) + ordered[3] * np.float32(0.5))
  odd = ON.copy()
  odd[0] = False
  np.testing.assert_array_equal(
    columns.median(_dirty(x), jnp.asarray(odd)), np.sort(x[odd], 0)[2] + 0
  )


@pytest.mark.slow
@pytest.mark.parametrize('trim', [0, 1, 2])
def test_trimmed_mean(x, trim):
  found = columns.trimmed_mean(_dirty(x), jnp.asarray(ON), trim)
  kept = np.sort(x[ON].astype(np.float64), 0)[trim : 6 - trim]
  scale = np.abs(kept).max(0) + 1e-30
  np.testing.assert_allclose(found / scale, kept.mean(0) / scale, atol=5e-7)


@pytest.mark.slow
def test_trimming_leaves_no_trace_of_what_is_huge():
  x = RNG.normal(size=(8, 40)).astype(np.float32)
  x[0], x[1] = 3e38, -3e38
  found = columns.trimmed_mean(_dirty(x), jnp.asarray(ON), 1)
  np.testing.assert_allclose(found, x[[3, 4, 5, 7]].mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('count', [0, 1, 4, 6])
def test_smallest(x, count):
  on = jnp.asarray(ON)
  ordered = np.sort(x[ON].astype(np.float64), 0)[:count]
  scale = (np.abs(ordered).max(0) if count else 0) + 1e-30
  found = columns.smallest_sum(_dirty(x), on, count)
  np.testing.assert_allclose(found / scale, ordered.sum(0) / scale, atol=1e-6)
  shares = np.asarray(columns.smallest(_dirty(x), on, count))
  np.testing.assert_allclose(shares.sum(0), count, atol=1e-5)
  assert (shares[~ON] == 0).all() and (shares >= 0).all() and (shares <= 1).all()
  picked = (shares * np.where(ON[:, None], x, 0)).astype(np.float64).sum(0)
  np.testing.assert_allclose(picked / scale, ordered.sum(0) / scale, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(('rows', 'count'), [(6, 2), (6, 4), (6, 6), (5, 1), (5, 3), (5, 4)])
def test_mean_near_the_median(rows, count):
  # Of an even number of rows the two in the middle are equally far: both are in, or rounding tells.
  on = ON.copy()
  on[0] = rows == 6
  x = CASES['normal'][on].astype(np.float64)
  order = np.argsort(np.abs(x - np.median(x, 0)), 0)[:count]
  expected = np.take_along_axis(x, order, 0).mean(0)
  found = columns.mean_near(_dirty(CASES['normal']), jnp.asarray(on), count)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_mean_near_shares_ties():
  x = np.array([[-3.0], [-1.0], [0.0], [1.0], [9.0]], np.float32)
  on = jnp.ones(5, bool)
  np.testing.assert_allclose(columns.mean_near(jnp.asarray(x), on, 2), [0.0])
  np.testing.assert_allclose(columns.mean_near(jnp.asarray(x), on, 3), [0.0])
  np.testing.assert_allclose(columns.mean_near(jnp.asarray(x), on, 4), [-0.75])


@pytest.mark.slow
def test_nobody_gives_zeros():
  x, nobody = jnp.full((8, 20), jnp.nan), jnp.zeros(8, bool)
  for found in (
    columns.median(x, nobody),
    columns.trimmed_mean(x, nobody, 1),
    columns.smallest_sum(x, nobody, 0),
    columns.mean_near(x, nobody, 1),
    columns.smallest(x, nobody, 0),
  ):
    assert (np.asarray(found) == 0).all()


@pytest.mark.slow
def test_blocks_and_the_order_of_rows_change_nothing():
  x = RNG.normal(size=(30, 5000)).astype(np.float32)
  on, order = jnp.ones(30, bool), RNG.permutation(30)
  whole = np.asarray(columns.median(jnp.asarray(x), on))
  np.testing.assert_array_equal(whole, np.median(x, 0))
  np.testing.assert_array_equal(whole, columns.median(jnp.asarray(x[order]), on))


@pytest.mark.slow
def test_more_rows_than_sixteen_bits_count():
  """Counts up to C must not wrap round: 40,000 rows, all small but for the largest third."""
  x = np.concatenate([np.zeros(26_000), np.ones(14_000)]).astype(np.float32)[:, None]
  on = jnp.ones(len(x), bool)
  assert columns.median(jnp.asarray(x), on).tolist() == [0.0]
  assert columns.median(jnp.asarray(1 - x), on).tolist() == [1.0]
  np.testing.assert_allclose(columns.trimmed_mean(jnp.asarray(x), on, 10_000), [0.2], rtol=1e-6)


@pytest.mark.slow
def test_means_whose_sums_are_beyond_float32():
  x = np.linspace(1e36, 3e38, 400).astype(np.float32)[:, None] * np.array(
    [1, -1, 1e-30], np.float32
  )
  on = jnp.ones(400, bool)
  expected = x[3:-3].astype(np.float64).mean(0)
  np.testing.assert_allclose(columns.trimmed_mean(jnp.asarray(x), on, 3), expected, rtol=1e-5)
  near = columns.mean_near(jnp.asarray(x), on, 394)
  np.testing.assert_allclose(near, expected, rtol=1e-5)


@pytest.mark.slow
def test_what_is_tied_up_to_rounding_shares_too():
  x = jnp.array([[1.0], [2.0], [2.000001], [3.0]])
  found = columns.smallest(x, jnp.ones(4, bool), 2)
  np.testing.assert_allclose(found[:, 0], [1, 0.5, 0.5, 0])
  assert columns.smallest(x, jnp.ones(4, bool), 2, rounding=0.0)[:, 0].tolist() == [1, 1, 0, 0]
  # Replaced by the mean of both, 2, and taken once.
  merged = jnp.array([False, True, True, False])
  x = jnp.array([[1.0], [0.0], [4.0], [3.0]])
  on = jnp.array([True, True, False, True])
  np.testing.assert_allclose(columns.mean_near(x, on, 1, merged), [2.0])
