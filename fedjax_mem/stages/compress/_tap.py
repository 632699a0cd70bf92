"""The codes themselves, for who sends them: a client's side returns what its code is decoded to."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any, NamedTuple

_taken: contextvars.ContextVar[list['Tapped'] | None] = contextvars.ContextVar('tap', default=None)


class Tapped(NamedTuple):
  """A code that a client side has made.

  Attributes:
    codec: its codec.
    code: the code, of tracers within the function that is traced.
  """

  codec: Any
  code: Any


@contextlib.contextmanager
def tapped() -> Iterator[list[Tapped]]:
  """Yields the list to which every codec's client side that runs within adds its code.

  Both must be within one traced function, which returns the codes. The sides then run `encode` and
  `decode`, never a shortcut without the code.
  """
  taken: list[Tapped] = []
  token = _taken.set(taken)
  try:
    yield taken
  finally:
    _taken.reset(token)


def listening() -> bool:
  """Returns whether someone wants the codes."""
  return _taken.get() is not None


def take(codec: Any, code: Any) -> None:
  """Hands a code to who listens."""
  taken = _taken.get()
  if taken is not None:
    taken.append(Tapped(codec, code))
