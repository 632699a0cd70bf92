"""Integers modulo 2 ** b equal Python's; rounding at random is unbiased and stays next door."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.codes import modular
from fedjax_mem.kernels.random import noise

EDGES = [0, 1, -1, 5, 127, 128, -128, -129, 2**15, 2**30, 2**31 - 1, -(2**31), -(2**31) + 1]


@pytest.mark.parametrize('bits', [2, 8, 15, 31, 32])
def test_wrapping_and_centering_are_those_of_whole_numbers(bits):
  x = jnp.asarray(EDGES, jnp.int32)
  half = 2 ** (bits - 1)
  expected = [(v + half) % 2**bits - half for v in EDGES]
  assert modular.centered(x, bits).tolist() == expected
  assert modular.centered(modular.wrapped(x, bits), bits).tolist() == expected
  if bits < 32:
    assert modular.wrapped(x, bits).tolist() == [v % 2**bits for v in EDGES]


def test_a_sum_in_int32_wraps_as_the_modulus_does():
  rng = np.random.default_rng(0)
  x = rng.integers(0, 2**16, size=(70_000, 3))
  total = modular.centered(jnp.asarray(x, jnp.int32).sum(0, dtype=jnp.int32), 16)
  np.testing.assert_array_equal(np.asarray(total) % 2**16, x.sum(0) % 2**16)
  assert x.sum() > 2**32


@pytest.mark.slow
def test_rounding_is_unbiased_and_next_door():
  x = jnp.asarray([0.25, -0.25, 1.75, -3.1, 1000.5, -7.0, 0.0, 2.0**-26], jnp.float32)
  drawn = np.stack([modular.stochastic_round(jax.random.key(i), x) for i in range(4000)])
  assert drawn.dtype == np.int32
  low, high = np.floor(np.asarray(x)), np.ceil(np.asarray(x))
  assert ((drawn == low) | (drawn == high)).all()
  # Of a draw that is 0 or 1 the deviation is at most a half.
  assert np.abs(drawn.mean(0) - np.asarray(x)).max() < 4.5 * 0.5 / np.sqrt(4000)
  assert (drawn[:, 5] == -7).all() and (drawn[:, 6] == 0).all()


def test_how_full_a_sum_is():
  whole = {'a': jnp.asarray([3, -(2**31)], jnp.int32), 'b': jnp.zeros((0,), jnp.int32)}
  assert float(modular.filled(whole, 32)) == 1.0
  assert float(modular.filled({'a': jnp.asarray([-64, 32], jnp.int32)}, 8)) == 0.5


def test_every_value_is_equally_likely():
  drawn = np.asarray(modular.uniform(jax.random.key(1), (40_000,))).view(np.uint32) >> 26
  counts = np.bincount(drawn, minlength=64)
  assert (((counts - 625) ** 2) / 625).sum() < 120  # chi-square of 63 degrees: p = 1e-5


def mass(variance, most):
  """Returns P(X = k), k = -most … most, of a Skellam variable, by convolving Poisson masses."""
  from scipy import stats

  k = np.arange(2 * most + 400)
  p = stats.poisson.pmf(k, variance / 2)
  return np.array([(p[abs(j) :] * p[: len(p) - abs(j)]).sum() for j in range(-most, most + 1)])


@pytest.mark.parametrize('sigma', [0.2, 1.0, 9.0])
def test_the_skellam_table_is_the_distribution_function(sigma):
  most = int(6 * sigma) + 3
  table, exact = noise.skellam_table(sigma), mass(sigma**2, most)
  at_most = exact[most] + np.concatenate([[0], np.cumsum(2 * exact[most + 1 :])])
  got = (table.high.astype(np.float64) * 2**32 + table.low)[: most + 1] / 2.0**64
  np.testing.assert_allclose(1 - got, 1 - at_most, rtol=1e-6, atol=1e-14)


def test_skellam_is_accepted_at_its_scale_and_rejected_at_others():
  from scipy import stats

  like = jax.ShapeDtypeStruct((20_000,), jnp.float32)
  got = np.asarray(noise.tabled(jax.random.key(2), like, noise.skellam_table(1.5)))

  def pvalue(sigma):
    expected = np.clip(mass(sigma**2, 6), 1e-12, None)
    seen = np.array([(got == k).sum() for k in range(-6, 7)])
    rest = max(1 - expected.sum(), 1e-9)
    seen, expected = np.append(seen, len(got) - seen.sum()), np.append(expected, rest)
    return stats.chisquare(seen, expected * len(got) / expected.sum()).pvalue

  assert pvalue(1.5) > 1e-3
  assert pvalue(1.0) < 1e-12 and pvalue(2.25) < 1e-12


def test_a_sum_of_skellams_is_one():
  from scipy import stats

  like = jax.ShapeDtypeStruct((20_000,), jnp.float32)
  table = noise.skellam_table(100 / np.sqrt(4))
  total = sum(np.asarray(noise.tabled(jax.random.key(i), like, table)) for i in range(4))
  assert (
    stats.kstest(
      total + np.random.default_rng(0).uniform(-0.5, 0.5, total.size), stats.norm(scale=100).cdf
    ).pvalue
    > 1e-3
  )


@pytest.mark.parametrize('sigma', [0.0, -1.0, float('nan'), 1e6, 'many'])
def test_a_bad_skellam_sigma_is_refused(sigma):
  with pytest.raises(ValueError, match='sigma must be'):
    noise.skellam_table(sigma)
