"""Logs that move while they are written; whole launches are in test_launching.py."""

import pytest

from fedjax_mem.runner.logs import Logs


def test_a_log_moves_while_it_is_written(tmp_path):
  run = tmp_path / 'out' / 'run'
  with Logs(run.parent, 1) as logs, logs.path(0).open('ab', buffering=0) as file:
    file.write(b'before, ')
    logs.follow(None)
    run.mkdir()
    logs.follow(str(run))
    file.write(b'after')
    assert logs.path(0) == run / 'logs' / 'process-0.txt'
    logs.follow(str(tmp_path))  # once
  assert (run / 'logs' / 'process-0.txt').read_bytes() == b'before, after'
  assert [x.name for x in run.parent.iterdir()] == ['run']


@pytest.mark.parametrize('there', [True, False])
def test_a_run_that_never_began_leaves_what_was_there(tmp_path, there):
  out = tmp_path / 'more' / 'out'
  if there:
    out.mkdir(parents=True)
  with Logs(out, 2) as logs:
    logs.path(1).touch()
  assert out.exists() == (tmp_path / 'more').exists() == there


def test_logs_are_kept_if_that_is_asked(tmp_path):
  with Logs(tmp_path, 1) as logs:
    logs.path(0).touch()
    logs.keep()
  assert logs.path(0).exists()
