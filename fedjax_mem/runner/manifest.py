"""The manifest of a run, read from its folder and checked: it may have been damaged or edited."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

FILE = 'manifest.json'

# Dotted key -> (what it must be, whether a value is that): of every run, then of one whose rounds
# have been prepared.
_Check = tuple[str, Callable[[Any], bool]]
_TEXT: _Check = ('a string', lambda x: isinstance(x, str))
_NUMBER: _Check = ('an integer >= 1', lambda x: type(x) is int and x >= 1)
_LINES: _Check = (
  'an array of strings',
  lambda x: isinstance(x, list) and all(isinstance(line, str) for line in x),
)
_ALWAYS = {'config_hash': _TEXT, 'status': _TEXT, 'warnings': _LINES}
_PREPARED = {
  'backend': _TEXT,
  'execution': ('a table', lambda x: isinstance(x, dict)),
  'execution.mode': ("'loop' or 'chunk'", lambda x: x in ('loop', 'chunk')),
  'execution.chunk': ('an integer >= 1 or null', lambda x: x is None or _NUMBER[1](x)),
  'execution.devices': ('an integer in [1, 1024]', lambda x: _NUMBER[1](x) and x <= 1024),
  'execution.max_rounds': _NUMBER,
  'resumed': (
    'an array of integers',
    lambda x: isinstance(x, list) and all(type(n) is int for n in x),
  ),
}


def read(folder: pathlib.Path) -> dict[str, Any]:
  """Returns the manifest of a run.

  Args:
    folder: of the run.

  Raises:
    ValueError: it is no JSON table, or lacks what a run needs; the message says what to do.
  """
  file = folder / FILE
  remedy = (
    f'put a sound copy of {FILE} back, or begin anew with `fedjax-mem run {folder}/config.toml`'
  )
  try:
    said = json.loads(file.read_text(encoding='utf-8'))
  except (ValueError, OSError) as error:
    raise ValueError(f'{file} must be readable JSON, got an error: {error}; {remedy}.') from error
  if not isinstance(said, dict):
    raise ValueError(f'{file} must hold a table, got {said!r:.60}; {remedy}.')
  for key, (wanted, holds) in {**_ALWAYS, **(_PREPARED if 'execution' in said else {})}.items():
    given, value = _value(said, key)
    if not given or not holds(value):
      got = f'{value!r:.60}' if given else 'none'
      raise ValueError(f'{file} must have {wanted} as {key}, got {got}; {remedy}.')
  return said


def _value(said: Any, key: str) -> tuple[bool, Any]:
  """Returns (whether it is there, the value) of a dotted key."""
  for part in key.split('.'):
    if not isinstance(said, dict) or part not in said:
      return False, None
    said = said[part]
  return True, said
