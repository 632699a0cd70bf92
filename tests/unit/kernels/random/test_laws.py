import jax
import numpy as np
import pytest
from scipy import stats

from fedjax_mem.kernels.random import laws


@pytest.mark.parametrize(
  ('number', 'probability', 'overflow'), [(1000, 0.01, 1e-9), (50, 0.3, 1e-14), (7, 1.0, 1e-9)]
)
def test_the_capacity_is_the_least_that_keeps_the_promise(number, probability, overflow):
  capacity = laws.binomial_capacity(number, probability, overflow)
  law = stats.binom(number, probability)
  assert law.sf(capacity) <= overflow
  assert law.sf(capacity - 1) > overflow
  assert capacity <= number


@pytest.mark.parametrize('probability', [2.0**-32, 0.25, 1 / 3, 1.0])
def test_as_many_words_are_chosen_as_the_probability_says(probability):
  steps = int(probability * 2.0**32)  # of the words 0 … 2**32 - 1 the lowest so many
  words = np.array([0, steps - 1, min(steps, 2**32 - 1), 2**32 - 1], np.uint32)
  assert laws.chosen(words, probability).tolist() == [True, True, steps == 2**32, steps == 2**32]


def test_nobody_is_chosen_with_less_than_a_step():
  assert not laws.chosen(np.zeros(3, np.uint32), 2.0**-33).any()


def test_draws_are_compared_in_all_of_their_64_bits():
  table = laws.thresholds(np.array([0.75, 0.5, 2.0**-60]))
  exact = [2**62, 2**63, 2**64 - 16]
  assert [int(h) << 32 | int(lo) for h, lo in zip(*table, strict=True)] == exact
  for threshold in exact:
    for draw, wanted in ((threshold - 1, False), (threshold, True), (threshold + 1, True)):
      halves = [np.uint32(x >> s & 0xFFFFFFFF) for x in (threshold, draw) for s in (32, 0)]
      assert bool(jax.jit(laws.reached)(*halves)) is wanted
