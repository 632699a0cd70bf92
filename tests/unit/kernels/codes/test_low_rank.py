"""One power iteration against NumPy's QR and SVD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.codes import low_rank


def _matrix(shape=(30, 20), rank=None, seed=0):
  rng = np.random.default_rng(seed)
  full = rng.normal(size=shape)
  if rank is not None:
    full = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
  return jnp.asarray(full, jnp.float32)


def _start(columns=20, rank=3):
  return low_rank.start(jax.random.key(1), columns, rank)


def _twin(m, q):
  p, r = np.linalg.qr(np.asarray(m, np.float64) @ np.asarray(q, np.float64))
  p = p * np.sign(np.diag(r))
  return p, np.asarray(m, np.float64).T @ p


@pytest.mark.slow
@pytest.mark.parametrize('rank', [1, 3, 20])
def test_numpy_twin(rank):
  m, q = _matrix(), _start(rank=rank)
  p, new = jax.jit(low_rank.encode)(m, q)
  expected = _twin(m, q)
  np.testing.assert_allclose(p, expected[0], atol=2e-4)
  np.testing.assert_allclose(new, expected[1], atol=2e-3)
  np.testing.assert_allclose(p.T @ p, np.eye(rank), atol=1e-6)
  np.testing.assert_allclose(low_rank.decode(p, new), expected[0] @ expected[1].T, atol=2e-4)


def test_ill_conditioned_columns_stay_orthonormal():
  base = np.random.default_rng(2).normal(size=(50, 1))
  nearly = base + 1e-3 * np.random.default_rng(3).normal(size=(50, 6))
  scales = 10.0 ** np.array([-30, 30, 0, -10, 10, 20])
  p = low_rank.orthonormal(jnp.asarray(nearly * scales, jnp.float32))
  np.testing.assert_allclose(p.T @ p, np.eye(6), atol=1e-6)


def test_projection_never_grows_and_full_rank_is_exact():
  m = _matrix()
  p, q = low_rank.encode(m, _start())
  sent = low_rank.decode(p, q)
  error, norm = np.linalg.norm(m - sent), np.linalg.norm(m)
  np.testing.assert_allclose(error**2 + np.linalg.norm(sent) ** 2, norm**2, rtol=1e-5)
  low = _matrix(rank=3)
  np.testing.assert_allclose(low_rank.decode(*low_rank.encode(low, _start())), low, atol=2e-4)


def test_warm_start_converges_to_the_leading_singular_vectors():
  m, q = _matrix(seed=4), _start(rank=2)
  for _ in range(60):
    p, q = low_rank.encode(m, q)
  u, s, v = np.linalg.svd(np.asarray(m, np.float64))
  best = (u[:, :2] * s[:2]) @ v[:2]
  np.testing.assert_allclose(low_rank.decode(p, q), best, atol=1e-2)


@pytest.mark.slow
def test_zeros_and_low_rank():
  p, q = low_rank.encode(jnp.zeros((6, 5)), _start(5, 2))
  np.testing.assert_array_equal(p, np.zeros((6, 2)))
  np.testing.assert_array_equal(q, np.zeros((5, 2)))
  p, q = low_rank.encode(_matrix((6, 5), rank=1), _start(5, 3))
  np.testing.assert_array_equal(p[:, 1:], np.zeros((6, 2)))
  np.testing.assert_allclose(low_rank.decode(p, q), _matrix((6, 5), rank=1), atol=1e-5)
  last = _start(5, 3)
  warm = low_rank.warm(q, last)
  np.testing.assert_array_equal(warm[:, 0], q[:, 0])
  np.testing.assert_array_equal(warm[:, 1:], last[:, 1:])
  np.testing.assert_array_equal(low_rank.warm(q * jnp.nan, last), last)


@pytest.mark.parametrize('value', [jnp.nan, jnp.inf, -jnp.inf])
def test_of_a_matrix_that_is_not_finite_no_factor_is(value):
  m = _matrix().at[3, 4].set(value)
  for start in (_start(), _start().at[4].set(0), jnp.zeros_like(_start())):
    p, q = low_rank.encode(m, start)
    assert not np.isfinite(p).any() and not np.isfinite(q).any()
    assert not np.isfinite(low_rank.decode(p, q)).any()


def test_bfloat16_vmap_loop_and_one_compilation():
  stack = jnp.stack([_matrix(seed=i) for i in range(3)]).astype(jnp.bfloat16)
  encode = jax.jit(lambda m, q: low_rank.encode(m, q))
  ps, qs = jax.vmap(low_rank.encode, (0, None))(stack, _start())
  for i, m in enumerate(stack):
    p, q = encode(m, _start())
    assert p.dtype == q.dtype == jnp.float32
    np.testing.assert_allclose(ps[i], p, atol=1e-5)
    np.testing.assert_allclose(qs[i], q, atol=1e-4)
  assert encode._cache_size() == 1


def test_bad_shapes():
  with pytest.raises(ValueError, match='q must be'):
    low_rank.encode(_matrix(), _start(19))
  with pytest.raises(ValueError, match='rank must be'):
    low_rank.encode(_matrix(), _start(rank=21))
