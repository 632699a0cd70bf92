"""Cohorts in which nobody comes back too soon: gaps, sizes, frequencies."""

import jax
import numpy as np
import pytest
from reference import given, tiny
from scipy import stats

from fedjax_mem.core import Context, Draws
from fedjax_mem.engine import plan
from fedjax_mem.stages.select import min_separation


def cohorts(layer, rounds, seed=3):
  n = layer.fact(Draws).population
  sim = given.build({'a': np.zeros((n, 1), np.float32)}, select=layer, seed=seed)
  _, _, state = given.play(sim, 0)
  ids = plan.peek(sim.setting, state, *tiny.rooted(seed), rounds)
  return np.asarray(ids)[:, : layer.fact(Draws).capacity]


@pytest.mark.slow
@pytest.mark.parametrize(
  'n, size, separation', [(12, 3, 4), (12, 3, 2), (10, 3, 3), (7, 7, 1), (5, 1, 5)]
)
def test_gaps_are_kept_and_cohorts_are_full_and_distinct(n, size, separation):
  ids = cohorts(min_separation(n, size, separation), 60)
  assert ((ids >= 0) & (ids < n)).all()
  assert all(len(set(row)) == size for row in ids.tolist())
  for client in range(n):
    took = np.flatnonzero((ids == client).any(1))
    assert (np.diff(took) >= separation).all()


@pytest.mark.slow
def test_clients_are_drawn_alike_and_not_in_order():
  ids = cohorts(min_separation(12, 2, 3), 3000)
  counts = np.bincount(ids.ravel(), minlength=12)
  # Counts of clients that keep apart vary less than those of independent draws.
  assert stats.chisquare(counts).pvalue > 0.01
  assert len(set(map(tuple, ids[:20].tolist()))) > 15


def test_the_state_counts_down_and_the_draw_is_from_the_key():
  layer = min_separation(6, 2, 3)
  ctx = Context(jax.random.key(1), None, None, None, None, None, None, None)
  wait = layer.value(ctx)
  cohort, after, _ = tiny.drawn(layer, ctx, wait)
  again, _, _ = tiny.drawn(layer, ctx, wait)
  np.testing.assert_array_equal(cohort.id, again.id)
  assert sorted(np.asarray(after).tolist()) == [0, 0, 0, 0, 2, 2]
  assert float(cohort.chance[0]) == pytest.approx(1 / 3)


@pytest.mark.parametrize('sizes', [(10, 3, 4), (10, 11, 1), (10, 3, 0), (10, 3, 1.5)])
def test_bad_sizes_are_refused(sizes):
  with pytest.raises(ValueError, match=r'(separation|cohort_size) must be'):
    min_separation(*sizes)
