"""Noise kernels: their laws accepted at their scale and rejected at others, and their tables."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_mem.kernels.random import noise

LIKE = {'a': jnp.zeros((150, 100)), 'b': jnp.zeros(5000), 'c': jnp.zeros(())}
KEY = jax.random.key(5)


def flat(tree):
  return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize(
  'draw, law', [(noise.gaussian, stats.norm), (noise.laplace, stats.laplace)]
)
def test_the_law_is_accepted_at_its_scale_and_rejected_at_others(draw, law):
  got = flat(draw(KEY, LIKE, 0.3))
  assert stats.kstest(got, law(scale=0.3).cdf).pvalue > 1e-3
  for wrong in (0.2, 0.45):
    assert stats.kstest(got, law(scale=wrong).cdf).pvalue < 1e-12


@pytest.mark.parametrize('draw', [noise.gaussian, noise.laplace])
def test_shapes_dtypes_and_streams(draw):
  got = draw(KEY, LIKE, jnp.float32(0.3))
  assert jax.tree.map(lambda x: (x.shape, x.dtype.name), got) == {
    'a': ((150, 100), 'float32'),
    'b': ((5000,), 'float32'),
    'c': ((), 'float32'),
  }
  again = jax.jit(lambda k, s: draw(k, LIKE, s))(KEY, jnp.float32(0.3))
  np.testing.assert_allclose(flat(again), flat(got), rtol=1e-5)
  assert abs(np.corrcoef(np.asarray(got['a']).ravel()[:5000], got['b'])[0, 1]) < 0.05
  other = flat(draw(jax.random.key(6), LIKE, 0.3))
  assert abs(np.corrcoef(other, flat(got))[0, 1]) < 0.03


def test_trees_without_values():
  assert noise.gaussian(KEY, {}, 1.0) == {}
  assert noise.gaussian(KEY, {'a': jnp.zeros((0, 3))}, 1.0)['a'].shape == (0, 3)


def test_half_precision_trees_get_float32_noise():
  assert noise.gaussian(KEY, jnp.zeros(3, jnp.bfloat16), 1.0).dtype == jnp.float32


def pmf(sigma, width):
  k = np.arange(-width, width + 1)
  mass = np.exp(-(k**2) / (2 * sigma**2))
  return k, mass / mass.sum()


@pytest.mark.parametrize('sigma', [0.7, 3.0])
def test_the_discrete_law_is_accepted_at_its_scale_and_rejected_at_others(sigma):
  got = flat(noise.tabled(KEY, LIKE, noise.discrete_table(sigma)))

  def pvalue(scale):
    k, mass = pmf(scale, int(8 * sigma) + 5)
    inner = mass * len(got) >= 5
    seen = np.array([(got == i).sum() for i in k[inner]])
    seen, mass = (
      np.append(seen, len(got) - seen.sum()),
      np.append(mass[inner], 1 - mass[inner].sum()),
    )
    return stats.chisquare(seen, mass * len(got)).pvalue

  assert pvalue(sigma) > 1e-3
  assert pvalue(sigma * 2 / 3) < 1e-12 and pvalue(sigma * 3 / 2) < 1e-12


def test_the_discrete_law_at_a_fine_grid_is_nearly_gaussian():
  got = flat(noise.tabled(KEY, LIKE, noise.discrete_table(1024.0)))
  assert (got == np.round(got)).all()
  assert stats.kstest(got, stats.norm(scale=1024).cdf).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('sigma', [Fraction(1, 2), Fraction(5)])
def test_the_table_is_the_distribution_function(sigma):
  # exp by its series in exact fractions, of which 60 terms are plenty for the small arguments.
  import math

  def exp(x):
    whole = int(x) + 1
    y, term, total = x / whole, Fraction(1), Fraction(1)
    for n in range(1, 40):
      term = term * y / n
      total += term
    return Fraction(total).limit_denominator(10**40) ** whole

  table = noise.discrete_table(float(sigma))
  mass = [
    1 / exp(Fraction(k * k) / (2 * sigma**2)) * (2 if k else 1)
    for k in range(0, int(12 * sigma) + 3)
  ]
  whole = sum(mass)
  for k in range(0, int(8 * sigma)):
    exact = float(2**64 * (1 - sum(mass[: k + 1]) / whole))  # of the upper tail
    got = 2**64 - ((int(table.high[k]) << 32) | int(table.low[k]))
    assert math.isclose(got, exact, rel_tol=1e-12, abs_tol=4), k


def test_the_signs_are_even_and_large_values_occur():
  like = jax.ShapeDtypeStruct((200_000,), jnp.float32)
  got = flat(noise.tabled(KEY, like, noise.discrete_table(2.0)))
  assert abs((got > 0).mean() - (got < 0).mean()) < 0.006
  assert np.abs(got).max() >= 8


@pytest.mark.parametrize('sigma', [0.0, -1.0, float('nan'), 1e6, 'many'])
def test_a_bad_sigma_is_refused(sigma):
  with pytest.raises(ValueError, match='sigma must be'):
    noise.discrete_table(sigma)
