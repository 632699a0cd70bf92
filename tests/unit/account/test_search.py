"""The search finds the largest number that fits, from any guess, in few trials."""

import pytest

from fedjax_mem.account.search import largest


@pytest.mark.parametrize('most', [1, 2, 7, 1000])
@pytest.mark.parametrize('guess', [1, 2, 5, 900, 5000])
@pytest.mark.parametrize('end', [1, 2, 3, 6, 7, 500, 999, 1000, 4000])
def test_the_largest_is_found(most, guess, end):
  tried = []

  def fits(k):
    assert 1 <= k <= most
    tried.append(k)
    return k <= end

  assert largest(fits, most, guess) == min(end, most)
  assert len(tried) <= 24


def test_a_good_guess_needs_few_trials():
  def trials(guess):
    tried = []
    largest(lambda k: tried.append(k) or k <= 1100, 1_000_000, guess)
    return len(tried)

  assert trials(1000) <= 10 < trials(1)
