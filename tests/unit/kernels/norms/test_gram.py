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
  found, norms = gram.squared_distances(jnp.asarray(x), jnp.ones(7, bool))
  expected = _distances(x)
  unit = found[0, 1] / expected[0, 1]
  np.testing.assert_allclose(found / unit, expected, rtol=2e-5, atol=1e-4)
  np.testing.assert_array_equal(found, np.asarray(found).T)
  np.testing.assert_allclose(norms, np.linalg.norm(x.astype(np.float64), axis=1), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('scale', [1e-25, 1.0, 1e25])
def test_what_is_near_is_told_apart_whatever_the_size(scale):
  """A common part a thousand times larger than the differences does not hide them."""
  x = (1000 + RNG.normal(size=(6, 500))) * scale
  x = x.astype(np.float32)
  found, _ = gram.squared_distances(jnp.asarray(x), jnp.ones(6, bool))
  expected = _distances(x)
  np.testing.assert_allclose(found[1] / found[0, 1], expected[1] / expected[0, 1], rtol=1e-4)


@pytest.mark.slow
def test_a_minority_cannot_spoil_the_others_distances():
  x = RNG.normal(size=(7, 50)).astype(np.float32)
  x[0], x[1], x[2] = 3e38, -1e30, 0
  found, _ = gram.squared_distances(jnp.asarray(x), jnp.ones(7, bool))
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
  found, _ = gram.squared_distances(jnp.asarray(x), jnp.asarray(on))
  alone, _ = gram.squared_distances(jnp.asarray(x[on]), jnp.ones(3, bool))
  np.testing.assert_allclose(np.asarray(found)[np.ix_(on, on)], alone, rtol=1e-6)
  assert np.isinf(np.asarray(found)[0, [1, 4]]).all()


@pytest.mark.parametrize('size', [4, 20_000])
@pytest.mark.parametrize('based', [False, True])
def test_distances_to_a_point(size, based):
  x = RNG.normal(size=(6, size)).astype(np.float32)
  a = RNG.uniform(size=6).astype(np.float32)
  base = RNG.normal(size=size).astype(np.float32) if based else None
  found = gram.distances_to(
    jnp.asarray(x), jnp.ones(6, bool), jnp.asarray(a), None if base is None else jnp.asarray(base)
  )
  point = a.astype(np.float64) @ x + (0 if base is None else base)
  np.testing.assert_allclose(found, np.linalg.norm(x - point, axis=1), rtol=1e-5)


@pytest.mark.slow
def test_norms_of_what_overflows_and_vanishes():
  x = np.array([[3e30, 4e30], [3e-30, 4e-30], [0, 0], [3, -4]], np.float32)
  np.testing.assert_allclose(gram.norms(jnp.asarray(x)), [5e30, 5e-30, 0, 5], rtol=1e-6)


@pytest.mark.slow
def test_shares_of_tied_scores():
  scores = jnp.array([2.0, 1.0, 2.0, 5.0, 2.0])
  on = jnp.array([True, True, True, True, False])
  np.testing.assert_allclose(gram.shares_of_smallest(scores, on, 2), [0.5, 1, 0.5, 0, 0])
