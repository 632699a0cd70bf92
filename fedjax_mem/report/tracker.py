"""The file of metrics: one JSON line per round, readable even after a crash.

Records are on the disk before the checkpoint of their rounds is (`sync`). Where they are shorter
all the same, `reach` says how far they go, and `missing` which rounds have none.

Lines are strict JSON: numbers that are not finite are written as the strings 'NaN', 'Infinity' and
'-Infinity' (as protobuf does), so that every JSON reader sees a diverged loss.
"""

import csv
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

Record = dict[str, Any]
_NAMES = {'NaN': math.nan, 'Infinity': math.inf, '-Infinity': -math.inf}


def _plain(value: Any) -> Any:
  """Returns `value` in types that JSON has; arrays become numbers or lists."""
  if hasattr(value, 'tolist'):  # NumPy and JAX, without importing either.
    value = value.tolist()
  if isinstance(value, Mapping):
    return {str(key): _plain(x) for key, x in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(x) for x in value]
  if isinstance(value, float) and not math.isfinite(value):
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
  return value


def _numbers(value: Any) -> Any:
  """Returns a value read from JSON, with 'NaN' and '±Infinity' turned into numbers again."""
  if isinstance(value, dict):
    return {key: _numbers(x) for key, x in value.items()}
  if isinstance(value, list):
    return [_numbers(x) for x in value]
  return _NAMES.get(value, value) if isinstance(value, str) else value


def _line(record: Mapping[str, Any]) -> str:
  return json.dumps(_plain(record), allow_nan=False, ensure_ascii=False) + '\n'


class MetricsWriter:
  """Appends records to a `metrics.jsonl`; each is in the file when `write` returns.

  An incomplete last line of an earlier process is removed first.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = pathlib.Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    if self.path.exists():
      _mend(self.path)
    self._file = self.path.open('a', encoding='utf-8')

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends one record; values are numbers, strings, arrays, or lists and tables of them."""
    self._file.write(_line(record))
    self._file.flush()

  def sync(self) -> None:
    """Returns when all records are on the disk: what relies on them may be written then."""
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file after its contents are on the disk."""
    if not self._file.closed:
      try:
        self.sync()
      finally:
        self._file.close()

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


def _parse(line: bytes) -> Record | None:
  """Returns the record in a line, or None if it is no JSON object."""
  try:
    record = json.loads(line)
  except ValueError:
    return None
  return _numbers(record) if isinstance(record, dict) else None


def _mend(path: pathlib.Path) -> None:
  """Removes an incomplete last line, so that the next record begins a line."""
  data = path.read_bytes()
  body = data.rstrip(b'\n')
  start = body.rfind(b'\n') + 1
  if body and _parse(body[start:]) is None:
    body = body[:start].rstrip(b'\n')
  mended = body + b'\n' if body else b''
  if mended != data:
    with path.open('r+b') as file:
      file.write(mended)
      file.truncate()


def read_metrics(path: str | os.PathLike[str]) -> list[Record]:
  """Returns the records of a `metrics.jsonl`, oldest first; an incomplete last line is skipped.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line before the last is not a JSON object; the message says what to do.
  """
  lines = pathlib.Path(path).read_bytes().rstrip(b'\n').split(b'\n')
  records = []
  for number, line in enumerate(lines, 1):
    record = _parse(line)
    if record is not None:
      records.append(record)
    elif number < len(lines) and line.strip():
      shown = line.decode(errors='replace')[:60]
      raise ValueError(
        f'{path}, line {number}, must be a JSON object, got {shown!r}: remove this line; a resumed '
        'run writes it again from a checkpoint before it, or names the round that is lost.'
      )
  return records


def reach(records: Iterable[Mapping[str, Any]]) -> int:
  """Returns the last round up to which there is a record of each; 0 if there is none of the first.

  >>> reach([{'round': 1}, {'round': 2}, {'round': 4}])
  2
  """
  rounds, last = _rounds(records), 0
  while last + 1 in rounds:
    last += 1
  return last


def missing(records: Iterable[Mapping[str, Any]], done: int) -> str:
  """Returns the rounds up to `done` that have no record, in words; '' if all have one.

  >>> missing([{'round': 2}, {'round': 4}], 8)
  '1, 3, 5 to 8'
  """
  rounds = _rounds(records)
  runs: list[list[int]] = []
  for number in range(1, done + 1):
    if number in rounds:
      continue
    if runs and runs[-1][1] == number - 1:
      runs[-1][1] = number
    else:
      runs.append([number, number])
  return ', '.join(str(a) if a == b else f'{a} to {b}' for a, b in runs)


def _rounds(records: Iterable[Mapping[str, Any]]) -> set[int]:
  return {x['round'] for x in records if type(x.get('round')) is int}


def truncate_after(path: str | os.PathLike[str], round: int) -> list[Record]:
  """Removes the records of the rounds after `round`, atomically, and returns the others.

  For resuming: a run that goes on from a checkpoint writes the later rounds again.

  Args:
    path: path of a `metrics.jsonl`; if it does not exist, nothing is done.
    round: the last round (1-based) that is kept; 0 keeps none.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return []
  read = (x for x in read_metrics(path) if type(x.get('round')) is int)
  # Sorted: the file may have been edited.
  kept = sorted((x for x in read if 1 <= x['round'] <= round), key=lambda x: int(x['round']))
  beside = path.with_name(path.name + '.tmp')
  with beside.open('w', encoding='utf-8') as file:
    file.writelines(map(_line, kept))
    file.flush()
    os.fsync(file.fileno())
  os.replace(beside, path)
  return kept


def columns(records: Iterable[Mapping[str, Any]]) -> list[str]:
  """Returns all keys of the records, in the order of first appearance."""
  return list(dict.fromkeys(key for record in records for key in record))


def write_csv(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
  """Writes records as CSV, with a column for every key; missing values are left empty."""
  records = list(records)
  with pathlib.Path(path).open('w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, columns(records))
    writer.writeheader()
    writer.writerows({key: _plain(x) for key, x in record.items()} for record in records)
