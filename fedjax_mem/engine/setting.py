"""What is fixed about the rounds of a run."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_mem.core import Round, Shape, Transform, Tree
from fedjax_mem.engine.clients import PLAIN, Adding, Layout, compensated


class Rooms(NamedTuple):
  """How many examples clients may have.

  Attributes:
    sums: [N] int64, examples of the largest client, of the two largest, and so on.
  """

  sums: np.ndarray

  @staticmethod
  def of(count: Any) -> 'Rooms':
    """Returns them by the numbers of examples [N] of the clients."""
    return Rooms(np.cumsum(np.sort(np.asarray(count, np.int64))[::-1]))

  def clients(self, number: int) -> int:
    """Returns the most examples that so many clients have together."""
    return int(self.sums[min(number, len(self.sums)) - 1])


class Setting(NamedTuple):
  """What is fixed about the rounds of a run.

  Attributes:
    layers: of the round.
    shape: static facts about the population.
    capacity: C, rows of a cohort with padding.
    layout: how the cohort is laid out.
    specs: for each layer after the algorithm, the shapes of what its client side receives.
    transforms: functions batch -> batch, applied to every batch that is gathered (normalisation).
    pool: how to sum over all examples of the cohort at once, or None.
    divided: whether the tables of client states are divided over the devices, and their rows
      written in the loop over clients.
    late: whether the tables are divided over several devices, and their rows written after all
      clients have run: a layer has a cohort side, or may withhold the round.
    apart: the room for examples, if each device has those of its own clients only (`apart.py`).
    metrics: names of the metrics of a round.
    covered: names of those that a claim of privacy covers.
    shards: how each array of a state is divided over the axis `model` (`shards.py`); None: no group
      of devices shares a model.
    round: the round of this setting, jitted, so that the plan's check of its shapes and the program
      of many rounds share one trace; None until the plan has made it.
  """

  layers: Round
  shape: Shape
  capacity: int
  layout: Layout
  specs: dict[str, Tree]
  transforms: tuple[Transform, ...] = ()
  pool: Any = None
  divided: bool = False
  late: bool = False
  apart: Rooms | None = None
  metrics: frozenset[str] = frozenset()
  covered: frozenset[str] = frozenset()
  shards: Any = None
  round: Any = None

  @property
  def split(self) -> bool:
    """Whether each device has the rows of its own clients only."""
    return self.divided or self.late

  @property
  def adding(self) -> Adding:
    """How messages are summed: with a bound on the rounding where noise has to cover it."""
    return compensated(self.layout.looped) if self.layers.compensated else PLAIN
