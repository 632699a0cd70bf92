"""Where a run may die between two segments, for tests of what its folder then says."""

import json
import pathlib

import pytest

from fedjax_mem.engine import Simulation
from fedjax_mem.report.tracker import read_metrics
from fedjax_mem.runner.checkpoint import Checkpoints
from fedjax_mem.runner.rounds import Rounds

# Before a segment's ledger has its name, and after each step of a segment.
BOUNDARIES = ('rename', 'ledger', 'segment', 'records', 'checkpoint')


def dies_at(patch: pytest.MonkeyPatch, boundary: str, round: int, die) -> None:
  """Lets a run die at a boundary of its first segment that goes beyond `round` rounds."""
  real = pathlib.Path.replace, Simulation.run, Rounds._segment, Checkpoints.save

  def replace(self, target):
    if self.name == 'ledger.json.part' and json.loads(self.read_text())['charged'] > round:
      die()
    return real[0](self, target)

  def run(self, state, rounds, *rest):
    if int(state.round) + rounds > round:
      die()
    return real[1](self, state, rounds, *rest)

  def segment(self, state, count):
    done = real[2](self, state, count)
    if int(done[0].round) > round:
      die()
    return done

  def records(self, state):
    if int(state.round) > round:
      die()
    return real[3](self, state)

  def checkpoint(self, state):
    saved = real[3](self, state)
    if int(state.round) > round:
      die()
    return saved

  where = {
    'rename': (pathlib.Path, 'replace', replace),
    'ledger': (Simulation, 'run', run),
    'segment': (Rounds, '_segment', segment),
    'records': (Checkpoints, 'save', records),
    'checkpoint': (Checkpoints, 'save', checkpoint),
  }
  patch.setattr(*where[boundary])


def published(folder: pathlib.Path) -> tuple[int, float]:
  """Returns (rounds, epsilon) of the last record in a run's folder; (0, 0.0) if there is none."""
  file = folder / 'metrics.jsonl'
  records = read_metrics(file) if file.exists() else []
  return (records[-1]['round'], records[-1]['epsilon']) if records else (0, 0.0)
