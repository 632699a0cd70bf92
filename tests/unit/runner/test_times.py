"""Seconds by name, over resumed runs."""

import time

import pytest

from fedjax_mem.runner.times import Times


def test_times_add_up_by_name_and_with_those_before():
  times = Times()
  for _ in range(2):
    with times('a'):
      time.sleep(0.01)
  with pytest.raises(KeyError), times('b'):
    raise KeyError
  found = times.since({'a': 100.0, 'c': 1.5})
  assert list(found) == ['a', 'c', 'b'] and found['c'] == 1.5
  assert 100.02 <= found['a'] < 101 and 0 <= found['b'] < 1
