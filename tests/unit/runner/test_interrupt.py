"""Signals: which are heard, what they do the first and the second time, what stays ignored."""

import os
import signal
import time

import pytest

from fedjax_mem.runner import interrupt
from fedjax_mem.runner.interrupt import Interrupt


def heard(said, number):
  """Waits until so many lines were said: the signal is read in a thread."""
  for _ in range(500):
    if len(said) >= number:
      return said
    time.sleep(0.01)
  pytest.fail(f'nothing was heard: {said}')


@pytest.mark.parametrize(
  ('number', 'name', 'code'),
  [
    (signal.SIGINT, 'Ctrl-C', 130),
    (signal.SIGTERM, 'SIGTERM', 143),
    (signal.SIGHUP, 'SIGHUP', 129),
  ],
)
def test_a_signal_asks_for_the_end_and_is_named(number, name, code):
  outside = signal.signal(number, signal.default_int_handler)  # `nohup` may ignore it
  before, said = signal.getsignal(number), []
  with Interrupt(said.append, 'farewell') as watch:
    assert not watch.asked
    os.kill(os.getpid(), number)
    (line,) = heard(said, 1)
    assert watch.asked and (watch.code, watch.words) == (code, name)
    assert 'ends after this segment of rounds' in line
    assert ('Ctrl-C again ends at once' in line) == (number == signal.SIGINT)
  assert signal.getsignal(number) is before
  signal.signal(number, outside)


def test_only_a_second_ctrl_c_ends_at_once(monkeypatch):
  ended, said = [], []
  monkeypatch.setattr(interrupt.os, '_exit', ended.append)
  with Interrupt(said.append, 'farewell') as watch:
    for i, number in enumerate((signal.SIGTERM, signal.SIGTERM, signal.SIGINT), 1):
      os.kill(os.getpid(), number)
      heard(said, i)
    assert not ended and (watch.code, watch.words) == (143, 'SIGTERM')  # the first counts
    os.kill(os.getpid(), signal.SIGINT)
    heard(said, 4)
    assert ended == [130]


def test_what_nohup_ignores_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with Interrupt(print, 'farewell') as watch:
      assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
      os.kill(os.getpid(), signal.SIGHUP)
      time.sleep(0.05)
      assert not watch.asked
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)
