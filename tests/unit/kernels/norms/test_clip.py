"""Clipping by the global norm against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.norms import clip


def _tree(scale, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'a': jnp.asarray(rng.normal(size=(5, 3)) * scale, jnp.float32),
    'b': [jnp.asarray(rng.normal(size=7) * scale, jnp.float32), jnp.float32(scale)],
  }


def _norm(tree):
  leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
  return np.linalg.norm(np.concatenate(leaves))


@pytest.mark.slow
@pytest.mark.parametrize('scale', [1e-30, 1e-20, 1e-3, 1.0, 1e3, 1e20, 1e30, 1e37])
@pytest.mark.parametrize('share', [0.5, 0.999, 1.5])
def test_numpy_twin(scale, share):
  tree = _tree(scale)
  norm = _norm(tree)
  bound = share * norm
  clipped, reported = jax.jit(clip.clip_by_global_norm)(tree, jnp.float32(bound))
  np.testing.assert_allclose(reported, norm, rtol=1e-6)
  factor = min(1.0, bound / norm)
  for actual, x in zip(jax.tree.leaves(clipped), jax.tree.leaves(tree), strict=True):
    np.testing.assert_allclose(actual, np.asarray(x, np.float64) * factor, rtol=2e-6)
  if factor == 1:
    jax.tree.map(np.testing.assert_array_equal, clipped, tree)


@pytest.mark.slow
def test_one_norm_over_the_whole_tree():
  clipped, norm = clip.clip_by_global_norm({'a': jnp.array([3.0]), 'b': jnp.array([4.0])}, 1.0)
  assert norm == 5
  np.testing.assert_allclose([clipped['a'][0], clipped['b'][0]], [0.6, 0.8], rtol=1e-6)


def test_zeros_and_empty_trees():
  zeros = {'a': jnp.zeros((3, 2)), 'b': jnp.zeros(0)}
  for bound in (0.0, 1.0):
    clipped, norm = clip.clip_by_global_norm(zeros, bound)
    assert norm == 0
    jax.tree.map(np.testing.assert_array_equal, clipped, zeros)
  assert clip.clip_by_global_norm({}, 1.0)[1] == 0


def test_bound_zero():
  clipped, _ = clip.clip_by_global_norm(_tree(1.0), 0.0)
  assert _norm(clipped) == 0


def test_a_norm_beyond_float32_is_still_clipped():
  tree = {'a': jnp.full(100, 3e38, jnp.float32)}
  clipped, norm = clip.clip_by_global_norm(tree, 1.0)
  assert np.isinf(norm)
  np.testing.assert_allclose(clipped['a'], np.full(100, 0.1), rtol=1e-6)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('value', [0.0, 1.0])
def test_values_that_are_not_finite_stay_so(bad, value):
  tree = {'a': jnp.array([value, bad], jnp.float32), 'b': jnp.full(3, value, jnp.float32)}
  clipped, norm = clip.clip_by_global_norm(tree, 1.0)
  assert not np.isfinite(norm)
  assert np.isnan(clipped['a']).all()


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('value', [0.0, 1.0])
def test_a_value_that_is_not_finite_is_seen_among_many(bad, value):
  many = {'a': jnp.full(9000, value).at[5].set(bad)}
  clipped, norm = clip.clip_by_global_norm(many, 1.0)
  assert not np.isfinite(norm) and np.isnan(clipped['a']).all()


def test_dtypes_are_kept():
  tree = {'a': jnp.full(4, 100, jnp.bfloat16), 'b': jnp.ones(2, jnp.float32)}
  clipped, _ = clip.clip_by_global_norm(tree, 1.0)
  assert clipped['a'].dtype == jnp.bfloat16 and clipped['b'].dtype == jnp.float32


@pytest.mark.slow
def test_vmap_equals_loop():
  trees = [_tree(1.0, seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees)
  clipped, norms = jax.vmap(lambda t: clip.clip_by_global_norm(t, 2.0))(stacked)
  for i, tree in enumerate(trees):
    expected, norm = clip.clip_by_global_norm(tree, 2.0)
    np.testing.assert_allclose(norms[i], norm, rtol=1e-6)
    np.testing.assert_allclose(clipped['a'][i], expected['a'], rtol=1e-6)


@pytest.mark.parametrize('bound', [-1.0, float('nan'), float('inf')])
def test_bad_bound(bound):
  with pytest.raises(ValueError, match='bound must be'):
    clip.clip_by_global_norm(_tree(1.0), bound)
