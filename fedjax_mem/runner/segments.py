"""Segments of rounds: how long the next one is, whom it draws, whether a run goes on after it."""

import math

import numpy as np

from fedjax_mem.core import State
from fedjax_mem.engine import Simulation


def failed(sim: Simulation, last: int, rows: dict[str, np.ndarray]) -> str | None:
  """Returns why a run cannot go on after a segment, or None.

  Args:
    sim: the compiled rounds.
    last: number of the last round of the segment, 1-based.
    rows: metrics of the segment, [R, ...] each.
  """
  if not rows['finite'][-1]:
    return f"the server's parameters are not finite after round {last}"
  empty = (rows['clients'] == 0) & (rows['not_finite'] >= 0).any(1)
  if empty.any() and not sim.claims:  # under a claim it would tell of single clients
    return (
      f'no client of round {last - len(empty) + 1 + int(np.argmax(empty))} sent a finite update'
    )
  return None


class Drawn:
  """The clients that the next rounds draw, for ledgers that count the rounds of each client."""

  def __init__(self, sim: Simulation):
    self._sim, self._first = sim, 0
    # After a round with feedback only one more is known. All else is drawn in blocks of one length,
    # so that one program is compiled.
    self._block = sim.max_rounds if sim.setting.layers.blind else 1
    self._ids = np.zeros((0, 0), np.int32)

  def ahead(self, state: State, count: int) -> np.ndarray:
    """Returns the ids [count, C] of the next rounds, padding included; [1, C] under feedback."""
    at = int(state.round) - self._first
    if at < 0 or at + count > len(self._ids):
      self._first, at = int(state.round), 0
      self._ids = np.asarray(self._sim.cohorts(state, self._block))
    return self._ids[at : at + count]


class Speed:
  """Chooses the number of rounds in a segment from the time of the rounds before."""

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._last = 0
    self._round: float | None = None

  def saw(self, rounds: int, seconds: float) -> None:
    """Records the time of a segment."""
    self._round, self._last = seconds / rounds, rounds

  def rounds(self) -> int:
    """Returns the rounds of the next segment: first one, later at most four times the last."""
    if self._round is None:
      return 1
    fitting = min(self._seconds / max(self._round, 1e-9), 4 * self._last)
    return max(1, math.floor(fitting))
