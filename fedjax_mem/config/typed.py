"""The base of the sections of a configuration: types of fields, names, counts."""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, ClassVar

from fedjax_mem.core import validate

MOST = 2**31 - 1  # of anything that is counted on a device, in int32
_LONGEST = 200  # characters of a name, which may become that of a file
_FACTORY = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*')
_KINDS = {
  bool: 'true or false',
  int: 'an integer',
  float: 'a number',
  str: 'a string',
  dict: 'a table',
  list: 'an array',
  tuple: 'an array of tables',
}


def _plain(name: str, value: Any) -> Any:
  """Returns a copy of a value if TOML can hold it: a table, array, string, number or boolean."""
  if isinstance(value, dict) and all(isinstance(key, str) for key in value):
    return {key: _plain(f'{name}.{key}', x) for key, x in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(f'{name}[{i}]', x) for i, x in enumerate(value)]
  if isinstance(value, float) and math.isnan(value):
    raise ValueError(f'{name} must be a number, got {value!r}.')
  if isinstance(value, str | bool | int | float):
    return value
  raise ValueError(f'{name} must be a table, array, string, number or boolean, got {value!r}.')


def _fits(value: Any, kind: Any) -> bool:
  if kind is float:
    return isinstance(value, int | float) and not isinstance(value, bool)
  return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _typed(name: str, value: Any, hint: Any) -> Any:
  """Returns `value` in the field's type (int -> float, copies of tables), or raises."""
  union = isinstance(hint, types.UnionType)
  choices = [typing.get_origin(x) or x for x in (typing.get_args(hint) if union else (hint,))]
  for kind in choices:
    if _fits(value, kind):
      if kind in (dict, list):
        return _plain(name, value)
      return _float(name, value) if kind is float else value
  wanted = ' or '.join(_KINDS.get(x, f'a {x.__name__}') for x in choices if x is not types.NoneType)
  raise ValueError(f'{name} must be {wanted}, got {value!r}.')


def _float(name: str, value: int | float) -> float:
  try:
    return float(value)
  except OverflowError as error:
    raise ValueError(
      f'{name} must be a finite number, got one of {_digits(value)} digits.'
    ) from error


def _digits(value: int | float) -> int:
  return int(math.log10(abs(value))) + 1


class Section:
  """A frozen dataclass whose fields are checked against their types, then by `_check`."""

  section: ClassVar[str] = ''

  def __post_init__(self) -> None:
    hints = typing.get_type_hints(type(self))
    for field in dataclasses.fields(self):  # type: ignore[arg-type]
      value = _typed(self._path(field.name), getattr(self, field.name), hints[field.name])
      object.__setattr__(self, field.name, value)
    self._check()

  def _path(self, field: str) -> str:
    return f'{self.section}.{field}' if self.section else field

  def _check(self) -> None:
    """Raises `ValueError` if a field, or a combination of fields, is out of range.

    This one checks nothing: types are checked before. A section with limits overrides it.
    """

  def _each(self, check: Any, *fields: str, **limits: Any) -> None:
    """Runs a check of `core.validate` on the fields that are set."""
    for field in fields:
      if getattr(self, field) is not None:
        check(**limits, **{self._path(field): getattr(self, field)})

  def _counts(self, *fields: str) -> None:
    """Checks numbers of things, of those fields that are set."""
    self._each(validate.integer, *fields, at_most=MOST)

  def _named(self, field: str, known: Sequence[str] = ()) -> None:
    """Checks a name in a registry (any if `known` is empty), or 'package.module:factory'."""
    value = getattr(self, field)
    if len(value) > _LONGEST or not value.isprintable():
      raise ValueError(
        f'{self._path(field)} must be at most {_LONGEST} printable characters, got {value!r:.60}'
        f'{"…" if len(value) > _LONGEST else ""}.'
      )
    if ':' in value or not value.strip():
      if not _FACTORY.fullmatch(value):
        raise ValueError(
          f"{self._path(field)} must be a name or 'package.module:factory', got {value!r}."
        )
    elif known:
      validate.one_of(known, **{self._path(field): value})
