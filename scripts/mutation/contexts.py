"""Which tests execute a line, and how long each takes: from coverage with one context a test.

The file of contexts holds

    {"tests":  [[node id, seconds], ...],
     "groups": [[index of a test, ...], ...],
     "files":  {path: {line: index of the group of tests that execute it}},
     "setups": {path: {line: index of the group of those that do so in a fixture}}}

Many lines share one group, so the file stays small.
"""

import itertools
import json
import xml.etree.ElementTree
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

UNKNOWN = 1.0  # seconds of a test whose duration was not recorded
PHASES = ('setup', 'run', 'teardown')


def convert(data_file: Path, junit: Path, tree: Path, packages: Sequence[str]) -> dict[str, Any]:
  """Returns the contexts of the files of `packages`, from a coverage data file and a JUnit file.

  Raises:
    ValueError: the data hold no contexts of tests in these packages.
  """
  from coverage import CoverageData

  data = CoverageData(basename=str(data_file))
  data.read()
  seconds = durations(junit, tree)
  table = {name: i for i, name in enumerate(seconds)}
  groups: dict[tuple[int, ...], int] = {}
  files: dict[str, dict[int, int]] = {}
  setups: dict[str, dict[int, int]] = {}
  for measured in sorted(data.measured_files()):
    name = _relative(measured, tree, packages)
    if name is None:
      continue
    for line, contexts in sorted(data.contexts_by_lineno(measured).items()):
      everywhere, fixtures = set(), set()
      for test, phase in filter(None, map(_test, contexts)):
        index = table.setdefault(test, len(table))
        everywhere.add(index)
        if phase == 'setup':
          fixtures.add(index)
      group = tuple(sorted(everywhere))
      files.setdefault(name, {})[line] = groups.setdefault(group, len(groups))
      if fixtures:
        group = tuple(sorted(fixtures))
        setups.setdefault(name, {})[line] = groups.setdefault(group, len(groups))
  if not any(groups):
    raise ValueError(f'{data_file} holds no contexts of tests in {", ".join(packages)}.')
  tests = [[name, seconds.get(name)] for name in table]
  return {'tests': tests, 'groups': list(groups), 'files': files, 'setups': setups}


def _test(context: str) -> tuple[str, str] | None:
  """Returns the node id and the phase in a context of pytest-cov; None for the empty one."""
  test, bar, phase = context.rpartition('|')
  return (test, phase) if bar and phase in PHASES else None


def _relative(measured: str, tree: Path, packages: Sequence[str]) -> str | None:
  """Returns the path in the tree of a measured file of the packages, or None."""
  path = Path(measured).as_posix()
  for package in packages:
    at = path.find(f'{package}/') if path.startswith(package) else path.rfind(f'/{package}/') + 1
    if path.startswith(f'{package}/') or at > 0:
      name = path[at:]
      if (tree / name).is_file():
        return name
  return None


def durations(junit: Path, tree: Path) -> dict[str, float]:
  """Returns the seconds of each test by node id, from a JUnit file of pytest."""
  seconds: dict[str, float] = {}
  for case in xml.etree.ElementTree.parse(junit).iter('testcase'):
    name = _node_id(case.get('classname', ''), case.get('name', ''), tree)
    # An error in teardown gives a second entry.
    seconds[name] = max(seconds.get(name, 0.0), round(float(case.get('time', 0)), 3))
  return seconds


def _node_id(classname: str, name: str, tree: Path) -> str:
  """Returns the node id: the part of 'tests.core.test_x.TestY' that is a file, then classes."""
  parts = classname.split('.')
  for n in range(len(parts), 0, -1):
    path = '/'.join(parts[:n]) + '.py'
    if (tree / path).is_file():
      return '::'.join((path, *parts[n:], name))
  return f'{"/".join(parts)}.py::{name}'


class Selection(NamedTuple):
  """The tests to run on a mutant.

  Attributes:
    tests: node ids in the order in which they run.
    found: how many there were before the budget cut some.
  """

  tests: list[str]
  found: int


class Contexts:
  """What a file of contexts says."""

  def __init__(self, path: Path):
    try:
      raw = json.loads(path.read_text('utf-8'))
      self._raw = {k: raw[k] for k in ('tests', 'groups', 'files', 'setups')}
    except (ValueError, KeyError, TypeError) as e:
      raise ValueError(f'{path} is no file of contexts as `mutate.py contexts` writes it.') from e
    self._names = [name for name, _ in raw['tests']]
    self._seconds = {n: UNKNOWN if s is None else s for n, s in raw['tests']}
    self._by_file = defaultdict(list)
    for name in self._names:
      self._by_file[_file(name)].append(name)

  def select(self, mutant: dict[str, Any], budget: float) -> Selection:
    """Returns the tests to run on a mutant, of at most `budget` recorded seconds in all.

    First those that execute its lines; see `_direct`. Then those which may use what the first have
    computed, since a compiled program is traced once and a fixture is set up once, so coverage sees
    only the first test that needs it:

    - the tests of the same file with the same case as one of the first; see `_case`;
    - all tests of a file in which one executes the lines in a fixture.

    Either part is in the order of `laps`. A test that no longer fits the budget is left out; one
    test always runs.
    """
    direct = self._direct(mutant)
    known = set(direct)
    related = [x for x in self._related(mutant, direct) if x not in known]
    ordered = laps(direct, self._seconds) + laps(related, self._seconds)
    chosen: list[str] = []
    total = 0.0
    for test in ordered:
      if not chosen or total + self._seconds[test] <= budget:
        chosen.append(test)
        total += self._seconds[test]
    return Selection(chosen, len(ordered))

  def _direct(self, mutant: dict[str, Any]) -> list[str]:
    """Returns the tests that execute the mutant's lines.

    If none does (the line has a constant only, say), those that execute its statement. If the
    statement runs when its module is imported, those that execute any line of the file.
    """
    if not mutant['at_import']:
      ranges = ((mutant['line'], mutant['end_line']), mutant['statement'])
      for first, last in ranges:
        if tests := self._tests('files', mutant['file'], range(first, last + 1)):
          return tests
      lines = self._raw['files'].get(mutant['file'], {})
      if not any(
        str(n) in lines for n in range(mutant['statement'][0], mutant['statement'][1] + 1)
      ):
        return []  # never executed
    return self._tests('files', mutant['file'])

  def _tests(self, what: str, file: str, lines: Iterable[int] | None = None) -> list[str]:
    """Returns the tests of some lines of a file, or of all."""
    groups = self._raw[what].get(file, {})
    chosen = (
      groups.values() if lines is None else [groups[k] for k in map(str, lines) if k in groups]
    )
    return [
      self._names[i] for i in sorted({i for g in set(chosen) for i in self._raw['groups'][g]})
    ]

  def _related(self, mutant: dict[str, Any], direct: Sequence[str]) -> list[str]:
    lines = None if mutant['at_import'] else range(mutant['line'], mutant['end_line'] + 1)
    shared = {_file(x) for x in self._tests('setups', mutant['file'], lines)}
    found = []
    for file, tests in itertools.groupby(sorted(direct, key=_file), key=_file):
      others = self._by_file[file]
      if file not in shared:
        known = {p for x in others if (p := _parameter(x))}
        cases = {_case(p, known) for x in tests if (p := _parameter(x))}
        others = [x for x in others if (p := _parameter(x)) and _case(p, known) in cases]
      found += others
    return found


def _file(test: str) -> str:
  return test.partition('::')[0]


def _parameter(test: str) -> str:
  """Returns what stands in the brackets of a node id, or an empty string."""
  return test.partition('[')[2].removesuffix(']')


def _case(parameter: str, known: set[str]) -> str:
  """Returns the case that a parameter belongs to.

  That is the shortest known parameter of the file that it begins with, up to a '-': where there is
  a test [a-b], then [a-b-c] and [a-b-d] belong to its case.
  """
  parts = parameter.split('-')
  starts = ('-'.join(parts[:n]) for n in range(1, len(parts)))
  return next((s for s in starts if s in known), parameter)


def laps(tests: Iterable[str], seconds: dict[str, float]) -> list[str]:
  """Returns the tests cheapest first, spread over their files.

  Files take turns, the one with the cheapest test first, with 1, 2, 4, ... tests in a turn: to
  leave a file drops its fixtures and compiled programs, so to change it for each test is slow.
  """
  by_file = defaultdict(list)
  for test in sorted(tests, key=lambda t: (seconds[t], t)):
    by_file[_file(test)].append(test)
  ordered = []
  turn = 1
  while any(by_file.values()):
    for left in by_file.values():
      ordered += left[:turn]
      del left[:turn]
    turn *= 2
  return ordered
