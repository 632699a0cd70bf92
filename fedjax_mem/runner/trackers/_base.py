"""What a tracker is, and how a run calls several of them without being ended by any."""

import contextlib
import importlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

Record = Mapping[str, Any]


class About(NamedTuple):
  """What a tracker is told of a run at its start.

  Attributes:
    name: of the run's folder.
    run_id: 32 hexadecimal digits, the same when a run is resumed.
    folder: of the run.
    settings: all values of the configuration, by their dotted keys; under a claim of privacy
      without `noise_seed`, from which the noise can be computed.
    rounds: of the whole run.
    done: rounds that are done: 0, or more for a run that is resumed.
  """

  name: str
  run_id: str
  folder: pathlib.Path
  settings: Mapping[str, Any]
  rounds: int
  done: int


class Tracker:
  """A tracker; each method does nothing until it is overridden.

  Under a claim of privacy records hold what the claim covers and nothing else, unless the run was
  asked for more (`tracking.uncovered`). A resumed run repeats the rounds after its checkpoint.
  """

  def start(self, about: About) -> None:
    """Is called before the first round, and again when the run is resumed."""

  def segment(self, records: Sequence[Record]) -> None:
    """Is called after the rounds of a compiled segment, with their records, scores included."""

  def evaluation(self, record: Record) -> None:
    """Is called after `segment` where the server's model was evaluated, with the last record."""

  def checkpoint(self, round: int) -> None:
    """Is called once a checkpoint is on the disk, with the number of rounds in it."""

  def end(self, status: str) -> None:
    """Is called once: 'finished', 'failed' or 'interrupted'."""


class Trackers:
  """Calls trackers; one that raises is left out from there on, which is said, and no run ends."""

  def __init__(
    self, trackers: Sequence[Tracker], tell: Callable[[str], None], uncovered: bool = False
  ):
    """Takes the trackers.

    Args:
      trackers: are called in this order.
      tell: shows a line.
      uncovered: whether they get what a claim of privacy does not cover.
    """
    self._on, self._tell, self._uncovered = list(trackers), tell, uncovered

  @contextlib.contextmanager
  def following(self, about: About) -> Iterator[None]:
    """Tells of a run's start and, whatever happens, of its end."""
    self._call('start', about)
    try:
      yield
    except BaseException as error:
      self._call('end', 'interrupted' if isinstance(error, KeyboardInterrupt) else 'failed')
      raise
    self._call('end', 'finished')

  def segment(self, records: Sequence[Record], scored: bool) -> None:
    """Hands on the records of a segment, and the last one again if it has scores."""
    if not self._on:
      return
    released = [self._released(x) for x in records]
    self._call('segment', released)
    if scored:
      self._call('evaluation', released[-1])

  def checkpoint(self, round: int) -> None:
    """Tells of a checkpoint."""
    self._call('checkpoint', round)

  def _released(self, record: Record) -> dict[str, Any]:
    covered = record.get('covered')
    if covered is None or self._uncovered:
      return dict(record)
    return {name: record[name] for name in covered if name in record}

  def _call(self, method: str, *arguments: Any) -> None:
    for tracker in list(self._on):
      try:
        getattr(tracker, method)(*arguments)
      except Exception as error:  # of any library
        self._on.remove(tracker)
        said = ' '.join(str(error).split())[:300]
        self._tell(
          f'the tracker {type(tracker).__name__} is left out from here on: in {method} it raised '
          f'{type(error).__name__}: {said}'
        )


def numbers(record: Record) -> dict[str, float]:
  """Returns the metrics of a record that are numbers, without its round."""
  return {
    name: float(x) for name, x in record.items() if name != 'round' and isinstance(x, int | float)
  }


def extra(name: str) -> Any:
  """Returns a module of the extra `trackers`; raises `ValueError` with the remedy without it."""
  try:
    return importlib.import_module(name)
  except ImportError as error:
    package = name.partition('.')[0]
    raise ValueError(
      f'tracking.use must be of what is installed, got one that needs {package!r}: '
      f"pip install 'fedjax_mem[trackers]' ({error})."
    ) from error
