"""Lines of the engine's log that repeat become rare, and others are all written."""

import logging

from fedjax_mem.deploy import engine, logs


def written(seldom, name, *lines):
  """Returns which of the lines are written."""
  record = lambda line: logging.LogRecord(name, logging.INFO, '', 0, line, None, None)
  return [i for i, line in enumerate(lines, 1) if seldom.filter(record(line))]


def test_the_first_lines_of_a_kind_are_written_and_then_fewer_and_fewer():
  lines = [f'no answer from 10.0.0.1:{i} (job {i:08x})' for i in range(100)]
  assert written(logs.Seldom(), 'engine', *lines) == [*range(1, 11), 16, 32, 64]


def test_lines_of_other_kinds_are_all_written():
  seldom = logs.Seldom()
  written(seldom, 'engine', *['the same'] * 50)
  assert written(seldom, 'engine', 'another') == written(seldom, 'other', 'the same') == [1]


def test_a_line_after_a_pause_is_new(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(logs.time, 'monotonic', lambda: now[0])
  seldom = logs.Seldom()
  assert len(written(seldom, 'engine', *['the same'] * 50)) == 12
  now[0] = 301.0
  assert written(seldom, 'engine', *['the same'] * 5) == [1, 2, 3, 4, 5]


def test_the_engine_is_told_to_leave_them_out():
  handler = engine._LOGGING['handlers']['consoleHandler']
  assert engine._LOGGING['filters'][handler['filters'][0]] == {
    '()': 'fedjax_mem.deploy.logs.Seldom'
  }
