"""The result of a sweep: what each lane gave, means and intervals over seeds, the best point."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from fedjax_mem._wording import NOT_COVERED
from fedjax_mem.report.runs import MAIN
from fedjax_mem.report.tables import Interval, interval
from fedjax_mem.studies.sweeps.grid import label

SELECT = ('validation', 'loss', 'test')
SCORES = (
  'test_loss',
  'train_loss',
  *(f'{split}_{name}' for name in MAIN for split in ('test', 'validation')),
)


@dataclasses.dataclass(frozen=True)
class LaneResult:
  """One run of a sweep.

  Attributes:
    values: swept key -> value.
    seed: the seed.
    metrics: its records, one a round.
    folder: its folder.
    status: 'finished' or 'failed'.
    how: how it ran: beside which others, or alone and why.
    failure: why it could not go on; '' if it could.
    scores: final scores, of `SCORES` and 'epsilon'; those it has.
    uncovered: names of its metrics that a claim of privacy does not cover.
  """

  values: dict[str, Any]
  seed: int
  metrics: list[dict[str, Any]]
  folder: pathlib.Path
  status: str
  how: str
  failure: str = ''
  scores: dict[str, float] = dataclasses.field(default_factory=dict)
  uncovered: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class PointResult:
  """One point of the grid: its lanes, one a seed.

  Attributes:
    values: swept key -> value.
    lanes: in the order of the seeds.
    best: whether it is the best point.
  """

  values: dict[str, Any]
  lanes: tuple[LaneResult, ...]
  best: bool = False

  @property
  def label(self) -> str:
    """The point in words."""
    return label(self.values)

  @property
  def failed(self) -> int:
    """Number of lanes that ended before their last round."""
    return sum(x.status == 'failed' for x in self.lanes)

  def interval(self, key: str) -> Interval | None:
    """Returns the interval of a score over the seeds of lanes that did not fail."""
    found = [x.scores.get(key, math.nan) for x in self.lanes if x.status != 'failed']
    return interval([x for x in found if math.isfinite(x)])


@dataclasses.dataclass(frozen=True)
class SweepResult:
  """The result of a sweep.

  Attributes:
    points: in the order of the grid.
    select: what the best point is chosen by: 'validation', 'loss' or 'test'.
    folder: the folder of the sweep.
    privacy: statement of the release of all lanes together; None without a claim.
  """

  points: tuple[PointResult, ...]
  select: str
  folder: pathlib.Path
  privacy: str | None = None

  @property
  def best(self) -> PointResult | None:
    """The best point; None if no point has a lane that did not fail in every seed."""
    return next((x for x in self.points if x.best), None)

  @property
  def lanes(self) -> tuple[LaneResult, ...]:
    """All lanes, in the order in which they were planned."""
    return tuple(lane for point in self.points for lane in point.lanes)

  @property
  def chosen_by(self) -> str:
    """How the best point was chosen, in words; what every output says."""
    key, words, more = _by(self.lanes, self.select)
    text = f'best: {"highest" if more else "lowest"} mean of the {words}'
    if self.select == 'test':
      text += ', as was asked for: its test score is then no estimate for new data'
    uncovered = any(key in x.uncovered for x in self.lanes)
    return f'{text} ({NOT_COVERED})' if uncovered else text


def _by(lanes: Sequence[LaneResult], select: str) -> tuple[str, str, bool]:
  """Returns what the best point is chosen by: key of the scores, words, whether more is better."""
  if select == 'loss':
    return 'train_loss', 'final training loss', False
  main = next((x for x in MAIN if any(f'test_{x}' in lane.scores for lane in lanes)), 'accuracy')
  if select == 'test':
    return f'test_{main}', f'TEST {MAIN[main]}', True
  return f'validation_{main}', f"{MAIN[main]} on the server's validation split", True


def with_best(points: Sequence[PointResult], select: str) -> tuple[PointResult, ...]:
  """Returns the points with the best one marked: that with the best mean over all seeds.

  A point of which a lane failed is not chosen as long as there is another.
  """
  key, _, more = _by([lane for x in points for lane in x.lanes], select)
  found = [(x.failed, x.interval(key), i) for i, x in enumerate(points)]
  ranked = [
    (failed, -x.mean if more else x.mean, i)
    for failed, x, i in found
    if x is not None and math.isfinite(x.mean)
  ]
  best = min(ranked)[2] if ranked else None
  return tuple(dataclasses.replace(x, best=i == best) for i, x in enumerate(points))
