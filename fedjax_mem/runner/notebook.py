"""A bar in a notebook: one output, which is replaced in place.

It is plain HTML by IPython's own display, which every front end shows. (rich's bar in a notebook
needs ipywidgets, and without them warns at each refresh.)
"""

import contextvars
import html
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class Shown(NamedTuple):
  """What a bar shows.

  Attributes:
    done: rounds done.
    total: rounds of the whole run.
    times: the time since the start and the time that is left.
    facts: speed, losses and scores.
  """

  done: int
  total: int
  times: str
  facts: str


def display() -> Callable[..., Any] | None:
  """Returns IPython's `display` in the kernel of a notebook; None anywhere else."""
  if 'IPython' not in sys.modules:  # in a notebook it is imported long since
    return None
  from IPython import get_ipython
  from IPython.display import display as found

  return found if getattr(get_ipython(), 'kernel', None) is not None else None


class Bar:
  """A bar with a line of facts below it, drawn again every half a second if it has changed."""

  def __init__(self, display: Callable[..., Any], shown: Callable[[], Shown], every: float = 0.5):
    """Prepares a bar.

    Args:
      display: that of IPython.
      shown: returns what is to be shown at this moment; called by a thread.
      every: seconds between two updates, each of which is a message to the browser.
    """
    self._display, self._shown, self._every = display, shown, every
    self._handle: Any = None
    self._last: dict[str, str] = {}
    self._end = threading.Event()
    # The kernel keeps in the context which cell an output belongs to.
    run = contextvars.copy_context().run
    self._thread = threading.Thread(target=run, args=(self._tick,), daemon=True)

  def start(self) -> None:
    """Shows the bar below what the cell has shown so far."""
    self._last = _bundle(self._shown())
    self._handle = self._display(self._last, raw=True, display_id=True)
    self._thread.start()

  def show(self, done: int, total: int) -> None:
    """Does nothing: the next drawing shows that `done` rounds of `total` are done."""

  def stop(self) -> None:
    """Shows the last state, which stays."""
    self._end.set()
    self._thread.join()
    self._draw()

  def _tick(self) -> None:
    while not self._end.wait(self._every):
      self._draw()

  def _draw(self) -> None:
    now = _bundle(self._shown())
    if now != self._last:
      self._last = now
      self._handle.update(now, raw=True)


def _bundle(shown: Shown) -> dict[str, str]:
  """Returns a bar as HTML, and as a line for front ends that show none."""
  rounds = f'round {shown.done}/{shown.total}'
  bar = f'<progress value="{shown.done}" max="{max(shown.total, 1)}"></progress>'
  said = f'{rounds} {bar} {html.escape(shown.times)}<br>{html.escape(shown.facts)}'
  line = ' · '.join(x for x in (rounds, shown.facts, shown.times) if x)
  return {'text/plain': line, 'text/html': f'<div>{said}</div>'}
