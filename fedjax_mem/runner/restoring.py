"""What the records of a run that was stopped still say, where its last moments may be lost.

Records are on the disk before the checkpoint of their rounds. Only damage from outside makes them
shorter: a file that was cut, edited or deleted.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_mem.report.tracker import missing, read_metrics


def records(file: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the records in a `metrics.jsonl`; none if there is no such file.

  Raises:
    ValueError: a line before the last is damaged.
  """
  return read_metrics(file) if file.exists() else []


def published(records: Sequence[Mapping[str, Any]]) -> int:
  """Returns the last round that has a record, 0 if there is none."""
  return max((x['round'] for x in records if type(x.get('round')) is int), default=0)


def lost(records: Sequence[Mapping[str, Any]], done: int) -> list[str]:
  """Returns a line that names the rounds up to `done` without a record, if there are any."""
  rounds = missing(records, done)
  if not rounds:
    return []
  return [
    f'the records of these rounds are lost: {rounds}; metrics.jsonl lacks them, and no sound '
    'checkpoint is early enough to run them again'
  ]
