"""What a mechanism promises by itself, and what one of somebody else's has to say."""

import dataclasses

import pytest

from fedjax_mem.core import Bound, Draws, Mechanism
from fedjax_mem.core.mechanism import path
from fedjax_mem.mechanisms import MECHANISMS, Gaussian, find, make, name
from fedjax_mem.stages import privacy

POISSON = Draws('poisson', 100, 10, 100)


@dataclasses.dataclass(frozen=True)
class Vague(Mechanism):
  """Says nothing."""


@pytest.mark.parametrize('wrong', [0.0, -1.0, float('nan'), float('inf'), 'much', None])
def test_the_multiplier_is_a_number_above_zero(wrong):
  with pytest.raises(ValueError, match='noise_multiplier must be'):
    Vague(wrong)


def test_what_is_not_said_is_told():
  with pytest.raises(NotImplementedError, match='Vague must say what a round costs'):
    Vague(1.0).event(POISSON, 'replace_one', 'rdp', 3)
  with pytest.raises(NotImplementedError, match='Vague must say how it is drawn'):
    Vague(1.0).draw(None, None, Bound(), ())
  with pytest.raises(NotImplementedError, match='Vague has no event for a cohort that is cut'):
    Vague(1.0).cut(POISSON, 1)


def test_nothing_is_amplified_unless_it_is_said():
  for scheme in ('poisson', 'without_replacement', 'cyclic', 'by strata'):
    draws = Draws(scheme, 100, 10, 100)
    assert not any(Vague(1.0).amplified(draws, x) for x in Vague(1.0).adjacencies(draws))
    assert not Gaussian(1.0).amplified(dataclasses.replace(draws, min_sep=2), 'replace_one')
  assert Gaussian(1.0).amplified(POISSON, 'add_or_remove_one')
  assert not Gaussian(1.0).amplified(None, 'replace_one')


@pytest.mark.parametrize(
  ('draws', 'noise', 'expected'),
  [
    (None, Gaussian(1.0), ['replace_one', 'replace_special']),
    (POISSON, Gaussian(1.0), ['add_or_remove_one', 'replace_special', 'replace_one']),
    (POISSON, Vague(1.0), ['replace_special', 'replace_one', 'add_or_remove_one']),
    (
      POISSON,
      find('skellam')(1.0, shares=3, dimension=4),
      ['replace_special', 'replace_one'],
    ),
    (
      Draws('without_replacement', 100, 10, 10),
      Gaussian(1.0),
      ['replace_one', 'replace_special'],
    ),
    (Draws('by strata', 100, 10, 10), Gaussian(1.0), ['replace_one', 'replace_special']),
    (Draws('by strata', 100, 10, 10, 2), Gaussian(1.0), ['replace_special', 'replace_one']),
    (Draws('cyclic', 100, 10, 10), Gaussian(1.0), ['replace_special', 'replace_one']),
    (
      Draws('without_replacement', 100, 10, 10),
      find('tree')(1.0),
      ['replace_special', 'replace_one'],
    ),
  ],
)
def test_neighbours_that_hold_the_default_first(draws, noise, expected):
  assert list(noise.adjacencies(draws)) == expected


def test_a_draw_that_nobody_has_an_event_for_is_not_taken_for_another():
  @dataclasses.dataclass(frozen=True)
  class Shuffled(Gaussian):
    amplifies = ('shuffled',)

  with pytest.raises(NotImplementedError, match="no event is known for a draw by 'shuffled'"):
    Shuffled(1.0).event(Draws('shuffled', 100, 10, 10), 'replace_one', 'rdp', 3)


def test_a_mechanism_is_found_by_name_path_or_class():
  for key, kind in MECHANISMS.items():
    assert find(key) is find(kind) is kind
  assert find(path(Gaussian(1.0))) is Gaussian and name(Gaussian(1.0)) == 'gaussian'
  assert find(f'{__name__}:Vague') is Vague and name(Vague(1.0)) == f'{__name__}:Vague'
  for wrong in ('gauss', 'math:pi', 'nowhere:Noise', 'a:b:c', 3, dict, Gaussian(1.0), ''):
    with pytest.raises(ValueError, match='mechanism must'):
      find(wrong)


def test_noise_for_another_norm_or_other_numbers_is_refused():
  assert find('gaussian', 'l2', integers=False) is find('gaussian', 'l1') is Gaussian
  with pytest.raises(ValueError, match=r"scaled to the L2 norm .* got 'laplace'.*use laplace or"):
    find('laplace', 'l2')
  with pytest.raises(ValueError, match="noise for integers here, got 'gaussian'"):
    find('gaussian', 'l2', integers=True)
  with pytest.raises(ValueError, match="noise for floats here, got 'skellam'"):
    find('skellam', integers=False)


@pytest.mark.parametrize('correlated', ['tree', 'matrix'])
def test_noise_that_is_correlated_is_refused_where_it_must_be_fresh(correlated):
  with pytest.raises(ValueError, match='must be fresh in every round here'):
    find(correlated, fresh=True)
  for make_layer in (privacy.central, privacy.local):
    with pytest.raises(ValueError, match='must be fresh in every round here'):
      make_layer(1.0, 1.0, mechanism=correlated)


def test_a_mechanism_is_made_of_what_it_takes():
  assert make(Gaussian, 2.0, dimension=3, shares=4) == Gaussian(2.0)
  made = make(find('skellam'), 2.0, dimension=3, shares=4)
  assert (made.dimension, made.shares, made.with_multiplier(3.0).shares) == (3, 4, 4)
  assert make(Gaussian, 0.0) is None
