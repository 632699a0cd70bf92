"""Noise for integers: what has to be known of it, alone and in shares."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.core import Bound
from fedjax_mem.mechanisms import DiscreteGaussian, Skellam

BOUND, LIKE = Bound(l2=20.0), {'a': jnp.zeros(20_000)}


def test_noise_on_integers_needs_its_dimension():
  with pytest.raises(ValueError, match='dimension must be given for Skellam noise'):
    Skellam(1.0)
  with pytest.raises(ValueError, match='dimension must be given for discrete Gaussian noise of 2'):
    DiscreteGaussian(1.0, shares=2)
  assert DiscreteGaussian(1.0, shares=1).dimension is None
  for wrong in ({'shares': 0}, {'dimension': 0}):
    with pytest.raises(ValueError, match=f'{next(iter(wrong))} must be'):
      Skellam(1.0, **{'dimension': 8} | wrong)


@pytest.mark.parametrize('made', [Skellam(1.0, dimension=8), DiscreteGaussian(1.0, 3, 8)])
def test_noise_on_integers_costs_by_its_bound_on_the_grid(made):
  for unknown in (None, Bound(), Bound(l1=3.0)):
    with pytest.raises(ValueError, match=r'bound must have the L2 norm .* on the integer grid'):
      made.event(None, 'replace_one', 'rdp', 1, unknown)
  one, two = (
    made.event(None, x, 'rdp', 1, BOUND).event for x in ('replace_special', 'replace_one')
  )
  assert two.rho == pytest.approx(4 * one.rho, rel=1e-3)


def test_a_known_l1_norm_costs_less():
  made = Skellam(0.2, dimension=10_000)
  assert made.concentrated(1, Bound(l1=5.0, l2=5.0)) < made.concentrated(1, Bound(l2=5.0))


@pytest.mark.parametrize('kind', [Skellam, DiscreteGaussian])
def test_a_share_has_its_part_of_the_variance(kind):
  """At its scale, and at neither two thirds nor three halves of it."""
  spread = {}
  for shares in (None, 4):
    made = kind(1.5, shares=shares, dimension=20_000)
    noise, state = made.draw(jax.random.key(0), LIKE, BOUND, ())
    assert noise['a'].dtype == jnp.int32 and state == ()
    assert made.carried == (shares is not None)
    spread[shares] = np.std(np.asarray(noise['a'], np.float64))
  for shares, found in spread.items():
    wanted = 1.5 * 20.0 / math.sqrt(shares or 1)
    assert found == pytest.approx(wanted, rel=0.03)
    assert not any(found == pytest.approx(wanted * x, rel=0.03) for x in (2 / 3, 3 / 2))
