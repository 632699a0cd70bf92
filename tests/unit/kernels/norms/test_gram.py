"""Distances between rows against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.norms import gram

RNG = np.random.default_rng(1)


def _distances(x):
  x = x.astype(np.float64)
  return ((x[:, None] - x[None]) ** 2).sum(-1)


@pytest.mark.slow
@pytest.mark.parametrize('size', [3, 900, 20_000])
def test_squared_distances(size):
  x = RNG.normal(size=(7, size)).astype(np.float32)
  found = gram.squared_distances(jnp.asarray(x), jnp.ones(7, bool))
  expected = _distances(x)
  unit = found[0, 1] / expected[0, 1]
  np.testing.assert_allclose(found / unit, expected, rtol=2e-5, atol=1e-4)
  np.testing.assert_array_equal(found, np.asarray(found).T)


@pytest.mark.slow
@pytest.mark.parametrize('scale', [1e-25, 1.0, 1e25])
def test_what_is_near_is_told_apart_whatever_the_size(scale):
  """A common part a thousand times larger than the differences does not hide them."""
  x = (1000 + RNG.normal(size=(6, 500))) * scale
  x = x.astype(np.float32)
  found = gram.squared_distances(jnp.asarray(x), jnp.ones(6, bool))
  expected = _distances(x)
  np.testing.assert_allclose(found[1] / found[0, 1], expected[1] / expected[0, 1], rtol=1e-4)


@pytest.mark.slow
def test_a_minority_cannot_spoil_the_others_distances():
  x = RNG.normal(size=(7, 50)).astype(np.float32)
  x[0], x[1], x[2] = 3e38, -1e32, 0
  found = gram.squared_distances(jnp.asarray(x), jnp.ones(7, bool))
  found = np.asarray(found)
  expected = _distances(x[2:])
  np.testing.assert_allclose(found[2:, 2:] / found[2, 3], expected / expected[0, 1], rtol=1e-5)
  assert np.isinf(found[0, 1:]).all() and np.isinf(found[1, 2:]).all()
  assert (np.diagonal(found) == 0).all()


@pytest.mark.slow
def test_rows_that_do_not_count_are_infinitely_far():
  x = RNG.normal(size=(5, 9)).astype(np.float32)
  on = np.array([True, False, True, True, False])
  x[~on] = 0
  found = gram.squared_distances(jnp.asarray(x), jnp.asarray(on))
  alone = gram.squared_distances(jnp.asarray(x[on]), jnp.ones(3, bool))
  np.testing.assert_allclose(np.asarray(found)[np.ix_(on, on)], alone, rtol=1e-6)
  assert np.isinf(np.asarray(found)[0, [1, 4]]).all()


@pytest.mark.parametrize('size', [4, 20_000])
@pytest.mark.parametrize('based', [False, True])
def test_distances_to_a_point(size, based):
  x = RNG.normal(size=(6, size)).astype(np.float32)
  a = RNG.uniform(size=6).astype(np.float32)
  base = RNG.normal(size=size).astype(np.float32) if based else None
  units = gram.units(jnp.asarray(x))
  held = jnp.ldexp(jnp.asarray(a), units)
  d, e = gram.distances_to(jnp.asarray(x), units, held, None if base is None else jnp.asarray(base))
  mix = a.astype(np.float64) @ x
  point = mix + (0 if base is None else base)
  np.testing.assert_allclose(jnp.ldexp(d, e), np.linalg.norm(x - point, axis=1), rtol=1e-5)
  np.testing.assert_allclose(gram.combine(held, jnp.asarray(x), units), mix, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_norms_of_what_overflows_and_vanishes():
  x = np.array([[3e30, 4e30], [3e-30, 4e-30], [0, 0], [3, -4]], np.float32)
  d, e = gram.norms(jnp.asarray(x))
  np.testing.assert_allclose(jnp.ldexp(d, e), [5e30, 5e-30, 0, 5], rtol=1e-6)


@pytest.mark.slow
def test_equal_rows_are_at_no_distance_and_far_ones_are_told_apart():
  x = RNG.normal(size=(6, 3000)).astype(np.float32)
  x[1], x[3], x[4], x[5] = x[0], 0, 1e9 * x[2], 1e27 * x[2]
  found = np.asarray(gram.squared_distances(jnp.asarray(x), jnp.ones(6, bool)))
  assert found[0, 1] == 0 < found[0, 2] < found[0, 4] < found[0, 5] < np.inf
  np.testing.assert_array_equal(found[0], found[1])
