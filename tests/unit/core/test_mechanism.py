"""What is accounted for: each missing or impossible fact of a mechanism is refused by name."""

import math

import pytest

from fedjax_mem.core.mechanism import Mechanism


@pytest.mark.parametrize(
  'name, facts',
  [
    ('skellam', {'l2': 3.0}),
    ('skellam', {'dimension': 8}),
    ('discrete_gaussian', {'l2': 3.0, 'shares': 2}),
    ('discrete_gaussian', {'dimension': 8, 'shares': 2}),
  ],
)
def test_noise_on_integers_needs_both_bounds(name, facts):
  with pytest.raises(ValueError, match=f'l2 and dimension must be given for {name} noise'):
    Mechanism(name, 1.0, **facts)
  whole = Mechanism(name, 1.0, **{'l2': 3.0, 'dimension': 8} | facts)
  assert (whole.l2, whole.dimension) == (3.0, 8)


def test_one_share_of_discrete_gaussian_noise_needs_none():
  assert Mechanism('discrete_gaussian', 1.0).l2 is None


@pytest.mark.parametrize(
  'sensitivities', [(), (0.0, 1.0), (-1.0, 1.0), (1.0, 3.0, 2.0), (3.0, 1.0, 2.0), (1.0, math.nan)]
)
def test_sensitivities_of_a_matrix_are_positive_and_never_decrease(sensitivities):
  with pytest.raises(ValueError, match='sensitivities must be numbers > 0 that never decrease'):
    Mechanism('matrix', 1.0, sensitivities=sensitivities)


def test_sensitivities_may_stay_and_become_a_tuple():
  assert Mechanism('matrix', 1.0, sensitivities=[1, 1, 2]).sensitivities == (1.0, 1.0, 2.0)
  assert Mechanism('matrix', 1.0, sensitivities=[2.5]).sensitivities == (2.5,)


@pytest.mark.parametrize(
  'wrong',
  [{'noise_multiplier': 0.0}, {'shares': 0}, {'separation': 0}, {'l2': 0.0}, {'restart': 0}],
)
def test_numbers_are_refused_by_name(wrong):
  with pytest.raises(ValueError, match=f'{next(iter(wrong))} must be'):
    Mechanism(**{'name': 'gaussian', 'noise_multiplier': 1.0} | wrong)
