"""Correlated noise: the dense inverse, sensitivities by brute force, the end of the matrix."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import given, tiny

from fedjax_mem.account import Ledger
from fedjax_mem.core import Draws, Noises
from fedjax_mem.kernels.random import noise
from fedjax_mem.mechanisms import matrix
from fedjax_mem.stages import privacy
from fedjax_mem.stages.select import min_separation

C, Z, N, D = 0.5, 0.7, 8, 40


def columns_of(strategy, n):
  """Returns the dense matrix C whose inverse the stream applies."""
  with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
    inverse = np.asarray(strategy.inverse.materialize(n), np.float64)
  return np.linalg.inv(inverse)


def brute_force(matrix, separation):
  """Returns the largest norm of a sum of columns over all patterns, in the first r rounds."""
  n = len(matrix)
  most = np.zeros(n)
  for k in range(1, n + 1):
    for pattern in itertools.combinations(range(n), k):
      if all(b - a >= separation for a, b in itertools.pairwise(pattern)):
        # Entries are >= 0, so contributions in one common direction are the worst.
        norms = np.sqrt(np.cumsum(matrix[:, pattern].sum(1) ** 2))
        most = np.maximum(most, norms)
  return most


@pytest.fixture(scope='module')
def strategies():
  return {'banded': matrix.banded(N, 3, 3), 'blt': matrix.blt(N, 1, 3)}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['banded', 'blt'])
def test_sensitivities_are_those_of_all_patterns(strategies, name):
  dense = columns_of(strategies[name], N)
  assert (dense > -1e-6).all()
  expected = brute_force(np.maximum(dense, 0), 3)
  np.testing.assert_allclose(strategies[name].sensitivities, expected, rtol=1e-5)


def test_sensitivities_by_brute_force_over_other_matrices():
  rng = np.random.default_rng(0)
  for bands, separation in ((1, 1), (1, 3), (2, 2), (2, 4), (3, 3)):
    columns = rng.uniform(0.1, 1, (N, bands))
    dense = np.zeros((N + bands, N))
    for i in range(N):
      dense[i : i + bands, i] = columns[i]
    got = matrix.banded_sensitivities(columns, separation)
    np.testing.assert_allclose(got, brute_force(dense[:N], separation))
  column = np.sort(rng.uniform(0, 1, N))[::-1]
  dense = sum(np.diag(np.full(N - i, column[i]), -i) for i in range(N))
  for separation in (1, 2, 3, 8):
    got = matrix.toeplitz_sensitivities(column, separation)
    np.testing.assert_allclose(got, brute_force(dense, separation))


@pytest.mark.parametrize('column', [[1.0, -0.1, 0.0], [1.0, 0.2, 0.3]])
def test_coefficients_that_the_theorem_does_not_cover_are_refused(column):
  with pytest.raises(ValueError, match='column must be coefficients'):
    matrix.toeplitz_sensitivities(np.array(column), 1)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['banded', 'blt'])
def test_the_noise_is_the_dense_inverse_times_independent_rows(strategies, name):
  layer = make(name)
  sim = given.build(given.silence(D, 9), layer, select=min_separation(9, 3, 3))
  got = given.sums(sim, N)
  size = jax.ShapeDtypeStruct((D,), jnp.float32)
  keys = [given.server_key('matrix_factorization', t) for t in range(N)]
  rows = np.stack([tiny.vec(noise.gaussian(k, size, C * Z)) for k in keys])
  dense = columns_of(strategies[name], N)
  np.testing.assert_allclose(dense @ got, rows, atol=1e-4)
  np.testing.assert_allclose(got, np.linalg.solve(dense, rows), atol=1e-4)


def make(name):
  return privacy.matrix_factorization(
    C, Z, N, separation=3, **({'strategy': 'blt', 'buffers': 1} if name == 'blt' else {})
  )


@pytest.mark.slow
def test_beyond_its_rounds_the_noise_is_not_a_number_and_the_run_stops():
  sim = given.build(given.silence(D, 9), make('banded'), select=min_separation(9, 3, 3))
  released, metrics, _ = given.play(sim, N + 1)
  assert all(np.isfinite(tiny.vec(x)).all() for x in released[:N])
  assert np.isnan(tiny.vec(released[N])).all() and not metrics[N]['finite']


@pytest.mark.slow
def test_prefix_sums_carry_less_noise_than_independent_noise_of_the_same_epsilon():
  n = 32
  strategy = matrix.banded(n, 8, 8)
  inverse = np.linalg.inv(columns_of(strategy, n))
  correlated = np.mean(np.cumsum(inverse, 0) ** 2 @ np.ones(n)) * strategy.sensitivities[-1] ** 2
  independent = np.mean(np.arange(1, n + 1)) * (n / 8)  # sensitivity sqrt(4) of rounds 8 apart
  assert correlated < 0.6 * independent


@pytest.mark.slow
def test_the_ledger_takes_the_mechanism_with_the_sampler():
  mechanism = make('banded').fact(Noises).mechanism
  assert len(mechanism.sensitivities) == N and mechanism.separation == 3
  plan = lambda separation: Ledger.plan(
    min_separation(40, 4, separation).fact(Draws), 'm', mechanism, rounds=N, delta=1e-5
  )
  assert 0 < plan(3).entry.epsilon[0] < plan(3).entry.epsilon[-1] < np.inf
  with pytest.raises(ValueError, match='rounds between two participations'):
    plan(2)


@pytest.mark.parametrize(
  'option', [{'rounds': 0}, {'separation': 0}, {'bands': 4}, {'buffers': 0}, {'strategy': 'band'}]
)
def test_bad_options_are_refused_by_name(option):
  with pytest.raises(ValueError, match=f'{next(iter(option))} must be'):
    privacy.matrix_factorization(C, Z, **({'rounds': N, 'separation': 3} | option))
