"""Writes one JSON line a round, and reads them back after anything that may have happened.

Lines are strict JSON: numbers that are not finite are written as the strings 'NaN', 'Infinity' and
'-Infinity' (as protobuf does), so that a diverged loss stays visible to every reader.
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
  """Returns `value` as JSON can hold it; arrays become numbers or lists."""
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
  """Returns what was read with the names of `_plain` as numbers again."""
  if isinstance(value, dict):
    return {key: _numbers(x) for key, x in value.items()}
  if isinstance(value, list):
    return [_numbers(x) for x in value]
  return _NAMES.get(value, value) if isinstance(value, str) else value


def _line(record: Mapping[str, Any]) -> str:
  return json.dumps(_plain(record), allow_nan=False, ensure_ascii=False) + '\n'


class MetricsWriter:
  """Appends records to a `metrics.jsonl`; each is in the file when `write` returns.

  A last line that an earlier process left half-written is cut off first.
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

  def close(self) -> None:
    """Closes the file; its contents are on the disk then."""
    if not self._file.closed:
      self._file.flush()
      os.fsync(self._file.fileno())
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
  """Cuts a torn last line off, so that what is appended begins a line."""
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
  """Returns the records of a `metrics.jsonl`, oldest first; a torn last line is left out.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line before the last is no JSON object.
  """
  lines = pathlib.Path(path).read_bytes().rstrip(b'\n').split(b'\n')
  records = []
  for number, line in enumerate(lines, 1):
    record = _parse(line)
    if record is not None:
      records.append(record)
    elif number < len(lines) and line.strip():
      shown = line.decode(errors='replace')[:60]
      raise ValueError(f'{path}, line {number}, must be a JSON object, got {shown!r}.')
  return records


def truncate_after(path: str | os.PathLike[str], round: int) -> list[Record]:
  """Drops the records of the rounds after `round`, atomically, and returns those that stay.

  For resuming: a run that goes on from a checkpoint writes the later rounds again.

  Args:
    path: of a `metrics.jsonl`; nothing is done if there is none.
    round: the last round (1-based) that is kept; 0 keeps none.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return []
  kept = [record for record in read_metrics(path) if record.get('round', 0) <= round]
  beside = path.with_name(path.name + '.tmp')
  with beside.open('w', encoding='utf-8') as file:
    file.writelines(map(_line, kept))
    file.flush()
    os.fsync(file.fileno())
  os.replace(beside, path)
  return kept


def columns(records: Iterable[Mapping[str, Any]]) -> list[str]:
  """Returns every key of the records, in the order in which they first appear."""
  return list(dict.fromkeys(key for record in records for key in record))


def write_csv(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
  """Writes records as CSV, a column for every key there is; what a record lacks stays empty."""
  records = list(records)
  with pathlib.Path(path).open('w', newline='', encoding='utf-8') as file:
    writer = csv.DictWriter(file, columns(records))
    writer.writeheader()
    writer.writerows({key: _plain(x) for key, x in record.items()} for record in records)
