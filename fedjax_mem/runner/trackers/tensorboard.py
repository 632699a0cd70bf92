"""TensorBoard: event files in `tensorboard/` of the run's folder; TensorFlow is not needed."""

import time
from collections.abc import Sequence
from typing import Any

from fedjax_mem.runner.trackers._base import About, Record, Tracker, extra, numbers

FOLDER = 'tensorboard'


class TensorBoard(Tracker):
  """Writes a scalar for each number of a record, at the step of its round."""

  def __init__(self) -> None:
    """Raises `ValueError` if tensorboard is not installed."""
    self._events = extra('tensorboard.compat.proto.event_pb2')
    self._summaries = extra('tensorboard.compat.proto.summary_pb2')
    self._files = extra('tensorboard.summary.writer.event_file_writer')
    self._writer: Any = None

  def start(self, about: About) -> None:
    """Opens a file; readers forget what an earlier one has after the rounds that are done."""
    self._writer = self._files.EventFileWriter(str(about.folder / FOLDER))
    log = self._events.SessionLog(status=self._events.SessionLog.START)
    self._add(step=about.done + 1, session_log=log)

  def segment(self, records: Sequence[Record]) -> None:
    """Writes the scalars."""
    value = self._summaries.Summary.Value
    for record in records:
      scalars = [value(tag=k, simple_value=x) for k, x in numbers(record).items()]
      self._add(step=record['round'], summary=self._summaries.Summary(value=scalars))

  def checkpoint(self, round: int) -> None:
    """Puts on the disk what was written."""
    self._writer.flush()

  def end(self, status: str) -> None:
    """Closes the file."""
    self._writer.close()

  def _add(self, **event: Any) -> None:
    self._writer.add_event(self._events.Event(wall_time=time.time(), **event))
