"""Output that goes away or cannot show a character: nothing is raised, what can be shown is."""

import io
import os
import sys

import pytest
from rich.console import Console

from fedjax_mem.runner.output import Steady, shown, steadied, steady
from fedjax_mem.runner.progress import Progress

LINE = 'ε 0.5 · loss 1 ± 2 … größer'


def encoded(encoding):
  return io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)


@pytest.mark.parametrize(
  ('encoding', 'words'),
  [
    ('ascii', 'epsilon 0.5 | loss 1 +- 2 ... gr??er'),
    ('cp1252', 'epsilon 0.5 · loss 1 ± 2 … größer'),
    ('utf-8', LINE),
  ],
)
def test_what_an_encoding_lacks_is_spelled_out(encoding, words):
  stream = encoded(encoding)
  print(LINE, file=Steady(stream))
  assert stream.buffer.getvalue().decode(encoding) == words + '\n'
  assert shown(LINE, encoding) == words


def test_an_encoding_that_is_not_known_is_ascii():
  assert shown('é', None) == '?'


def broken_pipe():
  read, write = os.pipe()
  os.close(read)
  return open(write, 'w', encoding='utf-8', buffering=1)


def test_a_reader_that_has_left_ends_nothing():
  stream = broken_pipe()
  with pytest.raises(BrokenPipeError):
    print('x', file=stream)
  out = Steady(stream)
  for _ in range(3):
    print('more', file=out, flush=True)
  stream.close()  # as Python does at its end: nothing is left that could fail


def test_a_full_disk_under_the_output_ends_nothing():
  with open('/dev/full', 'w', encoding='utf-8') as stream:
    print('x' * 100_000, file=Steady(stream), flush=True)


def test_a_closed_stream_and_none_at_all_end_nothing():
  stream = encoded('utf-8')
  stream.close()
  print('x', file=Steady(stream), flush=True)
  assert steady(None) is None
  once = steady(sys.stdout)
  assert steady(once) is once


def test_progress_goes_on_without_a_reader_and_in_ascii(monkeypatch):
  record = {'round': 1, 'epsilon': 0.5, 'train_loss': 1.0, 'seconds': 1.0, 'clients': 4}
  for stream in (broken_pipe(), encoded('ascii')):
    monkeypatch.setattr(sys, 'stdout', stream)
    with Progress(2, quiet=True, interval=0.0) as bar:
      bar.update(record)
      bar.note('ε')
    if stream.encoding == 'ascii':
      words = stream.buffer.getvalue().decode()
      assert 'round 1/2 | 4 clients/s | loss 1.0000 | epsilon 0.5' in words


def test_the_bar_goes_on_without_a_reader():
  console = Console(file=steady(broken_pipe()), force_terminal=True)
  with Progress(2, console=console) as bar:
    bar.update({'round': 1, 'epsilon': 0.5})


def test_a_command_is_steady_while_it_runs(monkeypatch):
  stream = encoded('ascii')
  monkeypatch.setattr(sys, 'stdout', stream)
  with steadied():
    print('·')
  assert sys.stdout is stream and stream.buffer.getvalue() == b'|\n'
