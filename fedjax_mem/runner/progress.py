"""Progress of a run: a bar on a terminal or in a notebook, else a plain line every few seconds."""

import collections
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from rich import filesize
from rich.console import Console, RenderableType
from rich.progress import BarColumn, ProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from fedjax_mem.runner import notebook
from fedjax_mem.runner.output import steady

# Rounds over which the speed is averaged: compilation and a slow round soon leave the average.
_WINDOW = 50
EXTRA = {'epsilon': 'ε', 'bytes': 'sent'}


def clock_text(seconds: float) -> str:
  """Returns a time as '0:42', '12:05' or '3:02:01'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}' if hours else f'{minutes}:{seconds:02d}'


class Progress:
  """Shows the rounds done, the speed, the latest losses and the time that is left.

  Use as a context manager: `with Progress(total) as bar: bar.update(record)`, once per round.
  """

  def __init__(
    self,
    total: int,
    start: int = 0,
    quiet: bool = False,
    *,
    extra: Mapping[str, str] | None = None,
    interval: float = 5.0,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Prepares the display.

    Args:
      total: rounds of the whole run.
      start: rounds that were done before (a resumed run).
      quiet: plain lines even on a terminal or in a notebook.
      extra: key of a record -> label, shown where a record has it; None = `EXTRA`.
      interval: least number of seconds between two plain lines.
      console: where to write; None = standard output, and in a notebook the bar is an output.
      clock: function that returns seconds, like `time.monotonic`.
    """
    self.total, self.done = total, start
    self._extra = EXTRA if extra is None else extra
    self._interval, self._clock = interval, clock
    self._display = None if console else notebook.display()
    # In a notebook notes are text: by rich's way each would be an output of its own.
    self._console = console or Console(
      file=steady(sys.stdout), highlight=False, force_jupyter=False
    )
    self._speeds: collections.deque[tuple[float, float]] = collections.deque(maxlen=_WINDOW)
    self._latest: dict[str, Any] = {}
    self._covered: set[str] | None = None  # without a claim nothing is marked
    self._began, self._start = clock(), start
    self._printed: float | None = None
    self._pending = False
    self._bar = None if quiet else self._make_bar()

  def _make_bar(self) -> '_Bar | notebook.Bar | None':
    if self._display is not None:
      shown = lambda: notebook.Shown(self.done, self.total, self.times(), self.facts())
      return notebook.Bar(self._display, shown)
    if not self._console.is_terminal:
      return None
    # Few refreshes: their thread shares the cores with the training.
    bar = _Bar(
      TextColumn('round {task.completed}/{task.total}', markup=False),
      BarColumn(bar_width=None),
      _Words(self.times),
      console=self._console,
      refresh_per_second=2,
      expand=True,
      facts=self.facts,
    )
    bar.add_task('', total=self.total, completed=self.done)
    return bar

  def __enter__(self) -> 'Progress':
    self._began = self._clock()
    if self._bar is not None:
      self._bar.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._bar is not None:
      self._bar.stop()
    elif self._pending:
      self._print()

  def update(self, record: Mapping[str, Any]) -> None:
    """Adds the record of one more round.

    Args:
      record: its key 'round', if present, is the round's number; its key 'covered', if present, has
        the names of the metrics that a claim of privacy covers, and all others are marked.
    """
    self.done = int(record.get('round', self.done + 1))
    self._latest.update({key: x for key, x in record.items() if x is not None})
    if 'covered' in record:
      self._covered = (self._covered or set()) | set(record['covered'])
    if record.get('seconds'):
      self._speeds.append((float(record['seconds']), float(record.get('clients', 0))))
    if self._bar is not None:
      self._bar.show(self.done, self.total)
      return
    self._pending = True
    if self._printed is None or self._clock() - self._printed >= self._interval:
      self._print()

  def expect(self, done: int, total: int) -> None:
    """Corrects how many rounds are done, and how many are in all: some may never be run."""
    self._pending |= total != self.total
    self.done, self.total = done, total
    if self._bar is not None:
      self._bar.show(done, total)

  def note(self, text: str) -> None:
    """Writes a line of its own, above the bar if there is one."""
    self._console.print(Text(text), soft_wrap=True)

  def _print(self) -> None:
    self._printed, self._pending = self._clock(), False
    parts = (f'round {self.done}/{self.total}', self.facts(), self.times())
    line = ' · '.join(part for part in parts if part)
    self._console.print(Text(line), soft_wrap=True)

  def facts(self) -> str:
    """Returns a line with the speed, the latest losses and the keys of `extra`."""
    parts = []
    seconds, clients = (sum(x) for x in zip(*self._speeds, strict=True)) if self._speeds else (0, 0)
    if clients:
      parts.append(f'{clients / seconds:,.4g} clients/s{self._mark("clients")}')
    for key, label in (('train_loss', 'loss'), ('test_loss', 'test loss')):
      if key in self._latest:
        parts.append(f'{label} {self._latest[key]:.4f}{self._mark(key)}')
    if 'test_accuracy' in self._latest:
      value = 100 * self._latest['test_accuracy']
      parts.append(f'accuracy {value:.2f}%{self._mark("test_accuracy")}')
    for key in ('r2', 'mean_average_precision', 'perplexity'):
      if f'test_{key}' in self._latest:
        label = key.replace('_', ' ')
        parts.append(f'{label} {self._latest[f"test_{key}"]:.4g}{self._mark(f"test_{key}")}')
    for key, label in self._extra.items():
      if key in self._latest:
        value = self._latest[key]
        shown = filesize.decimal(int(value)) if key == 'bytes' else f'{value:.4g}'
        parts.append(f'{label} {shown}{self._mark(key)}')
    return ' · '.join(parts)

  def _mark(self, key: str) -> str:
    """Returns what is said beside a metric that the run's claim of privacy does not cover."""
    return '' if self._covered is None or key in self._covered else ' (not covered)'

  def times(self) -> str:
    """Returns the time since the start and, if it can be estimated, the time that is left."""
    elapsed = self._clock() - self._began
    left = self._left(elapsed)
    return clock_text(elapsed) + ('' if left is None else f' · {clock_text(left)} left')

  def _left(self, elapsed: float) -> float | None:
    """Returns the seconds that are left, from the times in the records if they have them."""
    rounds, speeds = max(0, self.total - self.done), tuple(self._speeds)  # asked by a thread, too
    if speeds:
      return rounds * sum(seconds for seconds, _ in speeds) / len(speeds)
    done = self.done - self._start
    return rounds * elapsed / done if done > 0 else None


class Share(Progress):
  """One run's share of the progress of several: rounds of all of them count towards the whole."""

  def __init__(self, whole: Progress, done: int):
    """Takes the display of the whole, which is open as long as there are runs.

    Args:
      whole: the display.
      done: rounds of all runs so far.
    """
    self._whole = whole
    whole.done = done

  def __enter__(self) -> 'Share':
    return self

  def __exit__(self, *error: object) -> None:
    pass  # the display stays open for the next run

  def update(self, record: Mapping[str, Any]) -> None:
    """Adds the record of one more round; of its facts only the time counts."""
    self._whole.update({'seconds': record.get('seconds')})

  def note(self, text: str) -> None:
    """Writes nothing: a line of a single run is in its folder."""


class _Words(ProgressColumn):
  """A column with the text that a function returns when the bar is drawn."""

  def __init__(self, words: Callable[[], str]):
    super().__init__()
    self._words = words

  def render(self, task: Any) -> Text:
    """Returns the text of this moment."""
    del task
    return Text(self._words())


class _Bar(RichProgress):
  """A bar with a line of facts below it; beside it there is no room."""

  def __init__(self, *columns: ProgressColumn, facts: Callable[[], str], **options: Any):
    self._facts = facts  # Set first: the constructor of the base class already draws.
    super().__init__(*columns, **options)

  def show(self, done: int, total: int) -> None:
    """Shows that `done` rounds of `total` are done."""
    self.update(self.task_ids[0], completed=done, total=total)

  def get_renderables(self) -> Iterable[RenderableType]:
    """Yields the bar, then the facts of this moment."""
    yield from super().get_renderables()
    yield Text(self._facts())
