"""The Gaussian of float32, value by value: where its tail ends, and what tells two sums apart.

JAX draws a normal number from 23 random bits, so that all 2 ** 23 values can be listed: their law
is known exactly. It is close to the normal law, but it ends, and a float32 sum plus noise takes
values that the neighbouring sum plus noise never takes (Mironov 2012, CCS). So epsilon of float
noise is a statement on ideal noise, of which this is a simulation. Noise on integers has neither
fault: all integers within its table are reached, with a probability that is off by 2 ** -64.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_mem.kernels.random import noise
from tests.reference import evidence

pytestmark = pytest.mark.slow
BITS = 23
DRAWN = 1 << 20


@functools.cache
def values() -> np.ndarray:
  """Returns the value of each of the 2 ** 23 random numbers, [2 ** 23] float32, ascending.

  As `jax.random.normal`: a fraction k / 2 ** 23, moved to (-1, 1), through the inverse error
  function.
  """
  low = np.nextafter(np.float32(-1), np.float32(0))

  def of(fraction):
    uniform = fraction * (jnp.float32(1) - low) + low
    return jnp.float32(math.sqrt(2)) * jax.lax.erf_inv(jnp.maximum(low, uniform))

  fractions = np.arange(1 << BITS, dtype=np.float32) / np.float32(1 << BITS)
  return np.asarray(jax.jit(of)(fractions))


def drawn(stddev: float = 1.0) -> np.ndarray:
  """Returns noise as it is drawn, [DRAWN] float32."""
  like = jax.ShapeDtypeStruct((DRAWN,), jnp.float32)
  return np.asarray(jax.jit(lambda key: noise.gaussian(key, like, stddev))(jax.random.key(0)))


def distinguished(gap: float, sigma: float, at: float = 0.0) -> float:
  """Returns P(`at` + noise is a float32 that `at + gap` + noise never is).

  Who sees such a value knows which of the two sums it was: no epsilon allows more than delta.
  """
  one, other = (np.float32(s) + np.float32(sigma) * values() for s in (at, at + gap))
  return float(1 - np.isin(one, np.unique(other)).mean())


def test_every_value_drawn_is_one_of_those_listed():
  found = drawn()
  near = np.searchsorted(values(), found).clip(1, (1 << BITS) - 1)
  gap = np.minimum(abs(values()[near] - found), abs(values()[near - 1] - found))
  # The compiler may round the last bit of the polynomial in another way.
  assert (gap <= 4 * np.spacing(np.abs(found))).all()
  assert (gap == 0).mean() > 0.5


def test_the_tail_ends_at_5_4_standard_deviations():
  assert (np.diff(values()) >= 0).all()
  low, high = values()[0], values()[-1]
  assert -5.43 < low < -5.40 and 5.10 < high < 5.30
  # What the normal law has beyond: no claim with a smaller delta can rest on float32 noise.
  beyond = stats.norm.cdf(float(low)) + stats.norm.sf(float(high))
  assert 1e-7 < beyond < 4e-7
  assert abs(drawn()).max() <= 5.43
  assert noise.gaussian.__doc__ and '5.4' in noise.gaussian.__doc__


def test_the_law_is_the_normal_law_up_to_its_steps():
  exact = (np.arange(1 << BITS) + 0.5) / (1 << BITS)
  assert abs(stats.norm.cdf(values().astype(float)) - exact).max() < 2.0**-BITS
  assert abs(values().astype(float).mean()) < 1e-6
  assert abs(values().astype(float).std() - 1) < 1e-5


def test_some_values_tell_two_float_sums_apart():
  assert distinguished(1.0, 1.0) > 0.01


def test_noise_on_integers_reaches_every_integer_of_its_table():
  for table in (noise.discrete_table(3.0), noise.skellam_table(3.0)):
    whole = [(int(h) << 32) + int(x) for h, x in zip(table.high, table.low, strict=True)]
    strictly = whole[: np.argmax(np.array(whole, dtype=object) >= 2**64 - 1) + 1]
    assert all(a < b for a, b in itertools.pairwise(strictly))
    assert len(strictly) > 20  # beyond 6 sigma


def rows(full: bool) -> list[evidence.Row]:
  del full
  low, high = float(values()[0]), float(values()[-1])
  exact = (np.arange(1 << BITS) + 0.5) / (1 << BITS)
  gap = abs(stats.norm.cdf(values().astype(float)) - exact).max()
  listed = [
    ('smallest and largest value, standard deviations', f'{low:.4f} and {high:.4f}'),
    ('probability of the normal law beyond', f'{stats.norm.cdf(low) + stats.norm.sf(high):.2e}'),
    ('distinct values', f'{len(np.unique(values())):,} of {1 << BITS:,}'),
    ('largest distance of the distribution functions', f'{gap:.2e} (2^-23 = {2.0**-BITS:.2e})'),
    ('standard deviation', f'{values().astype(float).std():.7f}'),
    (f'largest magnitude of {DRAWN:,} draws', f'{abs(drawn()).max():.4f}'),
  ]
  listed += [
    (
      f'P(sum {at:g} + noise of {sigma:g} is a value that {at + 1:g} + noise never is)',
      f'{distinguished(1.0, sigma, at):.3f}',
    )
    for at, sigma in ((0.0, 1.0), (0.0, 10.0), (100.0, 1.0))
  ]
  return [{'of the float32 Gaussian': a, 'found': b} for a, b in listed]


if __name__ == '__main__':
  evidence.main('float_noise', rows)
