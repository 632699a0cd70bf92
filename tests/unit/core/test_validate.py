"""Every refusal names the argument, what it must be and what it got."""

import math

import pytest

from fedjax_mem.core import validate

NUMBERS = {
  validate.positive: ([1, 0.1, 1e30], [0, -1, math.nan, math.inf, 'x', None, True]),
  validate.non_negative: ([0, 2.5], [-1e-9, math.nan, math.inf, '1', False]),
  validate.fraction: ([0, 1, 0.5], [-0.1, 1.1, math.nan]),
  validate.probability: ([1, 1e-9], [0, 1.1, math.nan]),
  validate.open_fraction: ([0.5], [0, 1, math.nan]),
  validate.integer: ([1, 7], [0, -1, 1.0, True, '3', None, math.nan]),
}


@pytest.mark.parametrize('check', NUMBERS, ids=lambda f: f.__name__)
def test_numbers(check):
  good, bad = NUMBERS[check]
  for value in good:
    assert check(rate=value) == value
  for value in bad:
    with pytest.raises(ValueError, match=r'^rate must be ') as caught:
      check(rate=value)
    assert str(caught.value).endswith(f'got {value!r}.')


def test_integers_within_a_range():
  assert validate.integer(at_least=0, at_most=3, cohort=0) == 0
  for value in (-1, 4):
    with pytest.raises(ValueError, match=r'cohort must be an integer >= 0 and <= 3, got'):
      validate.integer(at_least=0, at_most=3, cohort=value)


def test_choices_come_with_the_nearest():
  with pytest.raises(ValueError) as caught:
    validate.one_of(('vmap', 'chunk'), mode='chunks')
  assert str(caught.value) == (
    "mode must be one of 'vmap', 'chunk', got 'chunks'. Did you mean 'chunk'?"
  )
  assert validate.nearest('xyz', ('vmap',)) == ''


def test_functions():
  assert validate.function(loss=abs) is abs
  with pytest.raises(ValueError, match=r'^loss must be callable, got 3\.$'):
    validate.function(loss=3)


def test_two_names_at_once_are_a_mistake_of_the_caller():
  with pytest.raises(TypeError, match='one keyword argument'):
    validate.positive(a=1, b=2)
