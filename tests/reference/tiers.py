"""Which tests a run has: the default tier, or a part of what it leaves out."""

import re
from collections.abc import Collection
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
