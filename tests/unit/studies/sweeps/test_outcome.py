"""Means, intervals by Student's t, and which point is the best."""

import math
import pathlib

import numpy as np
import pytest
from scipy import stats

from fedjax_mem.report.tables import interval
from fedjax_mem.studies.sweeps.outcome import (
  LaneResult,
  PointResult,
  SweepResult,
  with_best,
)


def point(rate, losses, accuracies=None, failed=()):
  accuracies = accuracies or [0.5] * len(losses)
  lanes = [
    LaneResult(
      {'rate': rate}, i, [], pathlib.Path('x'), 'failed' if i in failed else 'finished', 'alone',
      scores={'train_loss': loss, 'test_accuracy': accuracy}, uncovered=('train_loss',),
    )
    for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
  ]  # fmt: skip
  return PointResult({'rate': rate}, tuple(lanes))


def test_the_interval_is_that_of_scipy_and_of_the_printed_table_of_t():
  values = np.random.default_rng(0).normal(size=7)
  found = interval(values.tolist())
  low, high = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
  assert found.mean - found.half == pytest.approx(low)
  assert found.mean + found.half == pytest.approx(high)
  # The table: t(0.975; 2) = 4.303, and the deviation of (1, 2, 3) is 1.
  assert interval([1.0, 2.0, 3.0]).half == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)
  assert interval([2.0]) == (2.0, None, 1) and interval([]) is None


def test_the_best_has_the_lowest_loss_or_the_highest_accuracy_as_asked():
  points = [point(1, [0.5, 0.3], [0.9, 0.9]), point(2, [0.1, 0.2], [0.1, 0.2])]
  assert [x.best for x in with_best(points, 'loss')] == [False, True]
  assert [x.best for x in with_best(points, 'test')] == [True, False]


def test_a_point_that_failed_is_not_the_best_and_its_failed_lanes_enter_no_mean():
  points = [point(1, [0.01, math.nan], failed=(1,)), point(2, [0.5, 0.6])]
  assert [x.best for x in with_best(points, 'loss')] == [False, True]
  assert points[0].failed == 1 and points[0].interval('train_loss') == (0.01, None, 1)
  none = [point(1, [math.nan], failed=(0,))]
  assert not with_best(none, 'loss')[0].best


def test_every_output_can_say_how_the_best_was_chosen():
  points = with_best([point(1, [0.5])], 'test')
  by_test = SweepResult(points, 'test', pathlib.Path('x'))
  assert 'TEST accuracy' in by_test.chosen_by and 'no estimate' in by_test.chosen_by
  by_loss = SweepResult(points, 'loss', pathlib.Path('x'))
  assert 'not covered' in by_loss.chosen_by and by_loss.best.values == {'rate': 1}
