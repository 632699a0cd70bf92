"""The points of `benchmarks.scaling --all`: which there are, how they are started, what they leave.

Each part leaves benchmarks/results/scaling/PART.json: the machine, how busy it was, and its points.
"""

import datetime
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import rounds, table

RESULTS = rounds.ROOT / 'benchmarks' / 'results' / 'scaling'
TURNS = 3  # of weak scaling, one and two processes in turn
LONGEST = 300  # seconds of a point


class Point(NamedTuple):
  """One point.

  Attributes:
    series: to which it belongs.
    x: where it is on the axis of its series.
    spec: fields of a `scale_point.Spec`.
    pinned: whether each of its processes has a core of its own, from the first on.
  """

  series: str
  x: float
  spec: dict[str, Any]
  pinned: bool = False


def growth(small: bool) -> Iterator[Point]:
  """Yields the points in which what is simulated grows, on one device."""
  few = {'seconds': 0.05} if small else {}
  for n in (40,) if small else (10**3, 10**4, 10**5, 10**6, 10**7):
    yield Point('population', n, {'work': 'W3', 'cohort': min(n, 100), 'clients': n, **few})
  for c in (4,) if small else (10, 100, 1_000, 10_000):
    yield Point('cohort', c, {'work': 'W3', 'cohort': c, 'clients': 10 * c + 99_900, **few})
  for width in (4,) if small else (13, 126, 1_258, 12_580):
    spec = {'work': 'M1', 'cohort': 2 if small else 10, 'clients': 100, 'hidden': width, **few}
    yield Point('model', 795 * width + 10, spec)


def machines(small: bool) -> Iterator[Point]:
  """Yields the points in which the same round has more devices or processes."""
  few = {'seconds': 0.05, 'clients': 40} if small else {}
  for work, cohort in (('W3', 8),) if small else (('M1', 48), ('W3', 480)):
    spec = {'work': work, 'cohort': cohort, **few}
    for devices in (2,) if small else (1, 2, 4, 8):
      more = {'devices': devices, 'data': 'whole'}
      yield Point(f'{work} devices', devices, {**spec, **more})
    for processes in (2,) if small else (1, 2, 4):
      for data in ('whole', 'divided') if processes > 1 else ('whole',):
        more = {'processes': processes, 'data': data}
        yield Point(f'{work} processes, {data}', processes, {**spec, **more})


def weak(small: bool) -> Iterator[Point]:
  """Yields the points in which work grows with the processes, each on a core of its own."""
  few = {'seconds': 0.05, 'clients': 40} if small else {'seconds': 3.0}
  for work, each in (('W3', 4),) if small else (('W1', 4), ('M1', 24), ('W3', 240)):
    for _ in range(1 if small else TURNS):
      for processes in (1, 2):
        spec = {'work': work, 'cohort': each * processes, 'processes': processes, **few}
        for data in ('whole', 'divided') if processes > 1 else ('whole',):
          name = work if data == 'whole' else f'{work} divided'
          yield Point(name, processes, {**spec, 'data': data}, pinned=True)


def sums(small: bool) -> Iterator[Point]:
  """Yields the points that time a round with the sum over devices in order, by psum and without."""
  few = {'seconds': 0.05, 'clients': 40} if small else {'seconds': 9.0}
  for work, cohort in (('W3', 8),) if small else (('W1', 8), ('W3', 480)):
    spec = {'kind': 'sums', 'work': work, 'cohort': cohort, 'data': 'whole', **few}
    for devices in (2,) if small else (2, 4):
      yield Point(f'{work} devices', devices, {**spec, 'devices': devices})
    if not small:
      yield Point(f'{work} processes', 2, {**spec, 'processes': 2})


def limits(small: bool) -> Iterator[Point]:
  """Yields the measurements of memory, and of secure aggregation."""
  yield Point('limits', 0, {'kind': 'limits', 'devices': 2 if small else 8})
  yield Point('secured', 0, {'kind': 'secured', 'seconds': 0.05 if small else 2.0})


PARTS: dict[str, Callable[[bool], Iterator[Point]]] = {
  'growth': growth,
  'machines': machines,
  'weak': weak,
  'sums': sums,
  'limits': limits,
}


def measured(point: Point) -> dict[str, Any]:
  """Returns what the process 0 of a point says.

  Raises:
    RuntimeError: a process of it failed; the message has its last words.
  """
  processes = point.spec.get('processes', 1)
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    coordinator = f'127.0.0.1:{probe.getsockname()[1]}'
  started = []
  for process in range(processes):
    spec = {**point.spec, 'process': process, 'coordinator': coordinator}
    command = [sys.executable, '-m', 'benchmarks.scale_point', json.dumps(spec)]
    if point.pinned and shutil.which('taskset'):
      command = ['taskset', '-c', str(process % os.cpu_count()), *command]
    how = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    started.append(subprocess.Popen(command, cwd=rounds.ROOT, **how))
  try:
    said = [x.communicate(timeout=LONGEST) for x in started]
  finally:
    for x in started:
      x.kill()
  for x, (_, words) in zip(started, said, strict=True):
    if x.returncode:
      raise RuntimeError(f'{point.series} {point.x} failed: {words[-2000:]}')
  lines = [text for text in said[0][0].splitlines() if text.startswith('{')]
  return json.loads(lines[-1])


def run(parts: list[str], out: pathlib.Path = RESULTS, small: bool = False) -> None:
  """Measures parts, each point in a process of its own or several, and writes their files."""
  todo = {part: list(PARTS[part](small)) for part in parts}
  out.mkdir(parents=True, exist_ok=True)
  with progress() as bar:
    task = bar.add_task('', total=sum(map(len, todo.values())))
    for part, points in todo.items():
      load, lines = os.getloadavg()[0], []
      for point in points:
        bar.update(task, description=f'{part}: {point.series}, {point.x:,.0f}')
        facts = measured(point)
        given = {k: v for k, v in point.spec.items() if k != 'kind'}
        lines.append({'series': point.series, 'x': point.x, 'spec': given, **facts})
        bar.advance(task)
      facts = {**conditions(), 'load': [round(load, 1), round(os.getloadavg()[0], 1)]}
      text = json.dumps({'part': part, **facts, 'points': lines}, indent=1)
      (out / f'{part}.json').write_text(text + '\n')


def progress() -> Progress:
  """Returns the bar, on standard error: points done, and the time that is left."""
  columns = (
    TextColumn('{task.description}'),
    BarColumn(),
    MofNCompleteColumn(),
    TimeRemainingColumn(elapsed_when_finished=True),
  )
  return Progress(*columns, console=Console(stderr=True), speed_estimate_period=600)


def conditions() -> dict[str, Any]:
  """Returns on what was measured, and when."""
  return {
    'date': datetime.date.today().isoformat(),
    **table.machine(),
    'jax': jax.__version__,
  }
