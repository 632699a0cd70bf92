"""Checks of arguments: every message names the argument, what it must be and what it got.

Each check takes one keyword argument and returns its value, so that a constructor reads
`rate = positive(rate=rate)`. They run on Python values, before anything is traced.
"""

import contextlib
import contextvars
import difflib
import importlib
import math
import numbers
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, TypeGuard, TypeVar

T = TypeVar('T')
_LARGEST = (2 - 2**-23) * 2.0**127  # of float32
_MODULE = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*')
# The modules that `imported` may import; None: all of them.
_LISTED: contextvars.ContextVar[frozenset[str] | None] = contextvars.ContextVar('m', default=None)


def _single(named: dict[str, T]) -> tuple[str, T]:
  if len(named) != 1:
    raise TypeError(f'one keyword argument expected, got {sorted(named)!r}.')
  return next(iter(named.items()))


def _is_number(value: object) -> TypeGuard[float]:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _finite(value: float) -> bool:
  try:
    return math.isfinite(value)
  except OverflowError:  # an integer that no float can hold
    return False


def _number(named: dict[str, Any], wanted: str, holds: Callable[[float], bool]) -> float:
  name, value = _single(named)
  if not _is_number(value) or not _finite(value) or not holds(value):
    raise ValueError(f'{name} must be {wanted}, got {value!r}.')
  return value


def positive(**named: Any) -> float:
  """Returns the value, a finite number > 0, or raises `ValueError`."""
  return _number(named, 'a finite number > 0', lambda v: v > 0)


def non_negative(**named: Any) -> float:
  """Returns the value, a finite number >= 0, or raises `ValueError`."""
  return _number(named, 'a finite number >= 0', lambda v: v >= 0)


def fraction(**named: Any) -> float:
  """Returns the value, a number in [0, 1], or raises `ValueError`."""
  return _number(named, 'a number in [0, 1]', lambda v: 0 <= v <= 1)


def probability(**named: Any) -> float:
  """Returns the value, a number in (0, 1], or raises `ValueError`."""
  return _number(named, 'a number in (0, 1]', lambda v: 0 < v <= 1)


def open_fraction(**named: Any) -> float:
  """Returns the value, a number in (0, 1), or raises `ValueError`."""
  return _number(named, 'a number in (0, 1)', lambda v: 0 < v < 1)


def below_one(**named: Any) -> float:
  """Returns the value, a number in [0, 1), or raises `ValueError`."""
  return _number(named, 'a number in [0, 1)', lambda v: 0 <= v < 1)


def number(**named: Any) -> float:
  """Returns the value, a finite number, or raises `ValueError`."""
  return _number(named, 'a finite number', lambda v: True)


def single(**named: Any) -> float:
  """Returns the value, a number that a float32 holds, or raises `ValueError`."""
  return _number(named, 'a number that a float32 holds', lambda v: abs(v) <= _LARGEST)


def boolean(**named: Any) -> bool:
  """Returns the value, true or false, or raises `ValueError`."""
  name, value = _single(named)
  if not isinstance(value, bool):
    raise ValueError(f'{name} must be true or false, got {value!r}.')
  return value


def seed(**named: Any) -> int:
  """Returns the value, an integer in [0, 2 ** 32), or raises `ValueError`."""
  return integer(at_least=0, at_most=2**32 - 1, **named)


def integer(at_least: int = 1, at_most: int | None = None, **named: Any) -> int:
  """Returns the value, an integer in [at_least, at_most], or raises `ValueError`."""
  name, value = _single(named)
  wanted = f'an integer >= {at_least}' + (f' and <= {at_most}' if at_most is not None else '')
  whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  if not whole or value < at_least or (at_most is not None and value > at_most):
    raise ValueError(f'{name} must be {wanted}, got {value!r}.')
  return int(value)


def one_of(choices: Iterable[str], **named: str) -> str:
  """Returns the value, one of `choices`, or raises `ValueError` with the nearest of them."""
  name, value = _single(named)
  choices = list(choices)
  if value not in choices:
    known = ', '.join(map(repr, choices))
    raise ValueError(f'{name} must be one of {known}, got {value!r}.{nearest(value, choices)}')
  return value


def function(**named: Any) -> Callable[..., Any]:
  """Returns the value, a callable, or raises `ValueError`."""
  name, value = _single(named)
  if not callable(value):
    raise ValueError(f'{name} must be callable, got {value!r}.')
  made: Callable[..., Any] = value
  return made


@contextlib.contextmanager
def only_from(modules: Collection[str]) -> Iterator[None]:
  """Lets `imported` import nothing but these modules, for names that come from someone else.

  A listed module allows neither its package nor modules in it. Within another such context both
  lists hold. It covers this thread alone: one that starts within it begins without it.

  >>> with only_from(['optax']):
  ...   imported(optimizer='optax:sgd').__name__
  'sgd'

  Args:
    modules: their names, 'package.module' each.

  Raises:
    ValueError: a text that names no module.
  """
  if isinstance(modules, str):
    raise ValueError(f'allow must be a list of modules, got {modules!r}.')
  for module in modules:
    if not _MODULE.fullmatch(module):
      raise ValueError(f"allow must name a module, 'package.module', got {module!r}.")
  outer = _LISTED.get()
  token = _LISTED.set(frozenset(modules) if outer is None else outer & frozenset(modules))
  try:
    yield
  finally:
    _LISTED.reset(token)


def own_files(remedy: str, **named: Any) -> None:
  """Raises `ValueError` within `only_from`: who sends names does not choose files of this machine.

  >>> own_files('give them yourself', init='a.msgpack')
  >>> with only_from([]):
  ...   own_files('give them yourself', init='a.msgpack')
  Traceback (most recent call last):
    ...
  ValueError: init must name no files of this machine, got 'a.msgpack': give them yourself.

  Args:
    remedy: what to do instead.
    **named: what would be read, by the key that asks for it.
  """
  key, value = _single(named)
  if _LISTED.get() is not None:
    raise ValueError(f'{key} must name no files of this machine, got {value!r}: {remedy}.')


def imported(what: str = 'factory', **named: str) -> Callable[..., Any]:
  """Returns what 'package.module:name' names, a callable.

  Args:
    what: kind of thing, for messages.
    **named: the text, by the name of the argument or key that has it.

  Raises:
    ValueError: no such module, nothing of that name in it, or no callable; within `only_from` a
      module that is not listed, which is not imported, or what a listed one took from elsewhere.
  """
  key, value = _single(named)
  module, _, attribute = value.partition(':')
  listed = _LISTED.get()
  if listed is not None and module not in listed:
    raise ValueError(
      f'{key} must be a name of a registry, or of a module that `--allow` lists, got {value!r}: '
      f'start the client with --allow {module} if you trust it.'
    )
  try:
    found = getattr(importlib.import_module(module), attribute)
  except (ImportError, ValueError) as error:
    raise ValueError(
      f'{key} must name a module that can be imported (is its folder on PYTHONPATH?), '
      f'got {value!r}: {error}.'
    ) from error
  except AttributeError as error:
    raise ValueError(f'{key} must name a {what} in its module, got {value!r}: {error}.') from error
  # A trusted module may have imported `os.system`, which nobody has listed.
  home = str(getattr(found, '__module__', None))
  if listed is not None and home.partition('.')[0] != module.partition('.')[0]:
    raise ValueError(
      f'{key} must name a {what} that the package of its module defines itself, got {value!r}, '
      f'which is from {home!r}: name it there, and list that module.'
    )
  return function(**{key: found})


def nearest(value: Any, choices: Iterable[str]) -> str:
  """Returns ' Did you mean …?' for the choice most like `value`, or an empty string."""
  close = difflib.get_close_matches(str(value), list(choices), n=1)
  return f' Did you mean {close[0]!r}?' if close else ''
