"""Which tests a run has: the default tier, or a part of what it leaves out."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import NamedTuple


class Test(NamedTuple):
  """What decides where a test belongs.

  Attributes:
    slow: whether the default tier leaves it out.
    needed: devices without which it is left out.
    folder: of `tests/`.
    suite: whether it is of the suite that every method is under.
  """

  slow: bool
  needed: int
  folder: str
  suite: bool = False

  __test__ = False  # no test itself


def sampled(test: Test, name: str, seen: set[str], first: Collection[str]) -> bool:
  """Returns whether the sample for further interpreters has a test of the default tier.

  It has the first test of each file of unit tests, and of the contract the first case of each
  registry. What an interpreter or a new jax breaks shows where a module is imported and runs.

  Args:
    test: the test.
    name: its name: file, '::', the test, and its parameters in brackets.
    seen: files whose first test was found, to which this one is added.
    first: the cases of the contract, 'REGISTRY-name' each.
  """
  file, parameters = name.partition('::')[0], name.partition('[')[2]
  if test.suite:
    return any(re.match(rf'{x}(-|\]$)', parameters) for x in first)
  fresh = file not in seen and test.folder == 'unit'
  seen.add(file)
  return fresh


def case(name: str) -> str:
  """Returns the case of a test of the suite that every method is under, 'REGISTRY-name'.

  >>> case('test_contract.py::test_a[PRIVACY-central-chunk on devices]')
  'PRIVACY-central'
  """
  return '-'.join(name.partition('[')[2].rstrip(']').split('-')[:2])


def in_turn(names: Iterable[str], turn: int, turns: int) -> set[str]:
  """Returns the tests of one of several runs that share the parameters among them.

  Every run has all tests without parameters, and of each other test every `turns`-th parameter, one
  at least. Of the suite that every method is under it has whole cases, whose tests share programs.

  Args:
    names: of all the tests, in order: file, '::', the test, and its parameters in brackets.
    turn: which run, 0 or more; counted modulo `turns`.
    turns: how many runs have all the tests among them.
  """
  groups: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
  for name in names:
    file, test = name.partition('::')[0], name.partition('[')[0]
    suite = file.endswith('test_contract.py') and test != name
    group, member = (file, case(name)) if suite else (test, name)
    groups[group].setdefault(member, []).append(name)
  kept = set[str]()
  for members in groups.values():
    every = min(turns, len(members))
    for tests in list(members.values())[turn % every :: every]:
      kept.update(tests)
  return kept


def runs(test: Test, devices: int, *, every: bool = False, rest: bool = False) -> bool:
  """Returns whether a test runs on so many devices.

  The rest is in two parts. With 2 devices: all but the contract and the layouts on devices. With
  more: these two; layouts of the default tier once more, but those of the suite, which has a mode
  of one client a device.

  Args:
    test: the test.
    devices: of the run, 2 or more.
    every: of all tests.
    rest: of those that the default tier leaves out.
  """
  if test.needed > devices:
    return False
  if every or not rest:
    return every or not test.slow
  if test.needed > 1:
    return devices > 2 and (test.slow or test.needed > 2 or not test.suite)
  return test.slow and (devices > 2) == (test.folder == 'contract')
