"""What a user's factory makes: told by its annotation before it is called, and by its result.

A configuration names factories, 'package.module:factory'. One that makes something else than its
key takes must not run at all, where it says so itself.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Wanted(NamedTuple):
  """What a key takes.

  Attributes:
    kinds: types, of which a factory's value has one; where a tuple of such values is taken as well,
      `tuple` is one.
    words: of them, for messages.
  """

  kinds: tuple[type, ...]
  words: str


def check_annotation(wanted: Wanted, make: Callable[..., Any], **named: str) -> None:
  """Raises `ValueError` if a factory says itself that it makes something else.

  Args:
    wanted: what its key takes.
    make: a factory; a class makes its instances. What no annotation states is not refused.
    **named: its name, by the key that holds it.
  """
  key, name = next(iter(named.items()))
  if inspect.isclass(make):
    stated: Any = make
  else:
    try:
      stated = typing.get_type_hints(make).get('return', Any)
    except Exception:  # a name that is imported for type checkers only, or no annotations at all
      return
  if not _may(stated, wanted.kinds):
    raise ValueError(
      f'{key} must name a factory of {wanted.words}, got {name!r}, which makes {_shown(stated)}.'
    )


def _may(stated: Any, kinds: tuple[type, ...]) -> bool:
  """Returns whether a value of an annotation may be one of the kinds."""
  if typing.get_origin(stated) in (typing.Union, types.UnionType):
    return any(_may(x, kinds) for x in typing.get_args(stated))
  plain = typing.get_origin(stated) or stated
  if plain is Any or not inspect.isclass(plain):
    return plain is not None  # unknown
  return any(_related(plain, kind) for kind in kinds)


def _related(a: type, b: type) -> bool:
  if tuple in (a, b) and (hasattr(a, '_fields') or hasattr(b, '_fields')):
    return False  # a named tuple is a kind of its own
  try:
    return issubclass(a, b) or issubclass(b, a)
  except TypeError:  # a protocol that cannot tell
    return True


def _shown(stated: Any) -> str:
  return stated.__name__ if inspect.isclass(stated) else str(stated)


def check_made(wanted: Wanted, value: Any, **named: str) -> None:
  """Raises `ValueError` if a factory has made something else than its key takes.

  Args:
    wanted: what its key takes.
    value: what it has made.
    **named: its name, by the key that holds it.
  """
  key, name = next(iter(named.items()))
  kinds = tuple(x for x in wanted.kinds if x is not tuple or not hasattr(value, '_fields'))
  if not isinstance(value, kinds):
    raise ValueError(
      f'{key} must name a factory of {wanted.words}, got {name!r}, which has made {value!r:.60}.'
    )


def parameters(make: Callable[..., Any], **named: str) -> dict[str, inspect.Parameter]:
  """Returns the parameters of a factory, by name.

  Args:
    make: a factory.
    **named: its name, by the key that holds it.

  Raises:
    ValueError: nobody can tell them, or one that must be given has no name.
  """
  key, name = next(iter(named.items()))
  try:
    found = dict(inspect.signature(make).parameters)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'{key} must name a factory whose arguments can be told, got {name!r}: {error}.'
    ) from error
  unnamed = [x for x, p in found.items() if p.kind is p.POSITIONAL_ONLY]
  if any(found[x].default is inspect.Parameter.empty for x in unnamed):
    raise ValueError(f'{key} must name a factory that takes its arguments by name, got {name!r}.')
  return {x: p for x, p in found.items() if x not in unnamed}


def missing(known: dict[str, inspect.Parameter], given: Iterable[str]) -> list[str]:
  """Returns the names of parameters that must be given and are not.

  Args:
    known: from `parameters`.
    given: names of the arguments.
  """
  held = set(given)
  return [
    name
    for name, p in known.items()
    if p.default is p.empty and name not in held and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
  ]
