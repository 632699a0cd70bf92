"""What the noise of a matrix is accounted by: sensitivities that are there and never decrease."""

import math

import pytest

from fedjax_mem.mechanisms import Matrix


@pytest.mark.parametrize(
  'sensitivities', [(), (0.0, 1.0), (-1.0, 1.0), (1.0, 3.0, 2.0), (3.0, 1.0, 2.0), (1.0, math.nan)]
)
def test_sensitivities_of_a_matrix_are_positive_and_never_decrease(sensitivities):
  with pytest.raises(ValueError, match='sensitivities must be numbers > 0 that never decrease'):
    Matrix(1.0, sensitivities)


def test_sensitivities_may_stay_and_become_a_tuple():
  assert Matrix(1.0, [1, 1, 2]).sensitivities == (1.0, 1.0, 2.0)
  assert Matrix(1.0, [2.5]).sensitivities == (2.5,)


@pytest.mark.parametrize(
  'wrong', [{'noise_multiplier': 0.0}, {'separation': 0}, {'width': 0}, {'strategy': 'dense'}]
)
def test_numbers_are_refused_by_name(wrong):
  with pytest.raises(ValueError, match=f'{next(iter(wrong))} must be'):
    Matrix(**{'noise_multiplier': 1.0, 'sensitivities': (1.0,)} | wrong)
