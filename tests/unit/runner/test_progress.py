"""Progress: a bar on a terminal, a few plain lines elsewhere."""

import io
import re

import pytest
from rich.console import Console

from fedjax_mem.runner.progress import Progress, Share, clock_text


class Clock:
  """A clock that is moved by hand."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


def make(total=100, terminal=False, **options):
  file, clock = io.StringIO(), Clock()
  console = Console(
    file=file, width=140, force_terminal=terminal, color_system=None, highlight=False,
    force_interactive=terminal,
  )  # fmt: skip
  return Progress(total, console=console, clock=clock, **options), file, clock


def record(round, **more):
  return {'round': round, 'train_loss': 0.5, 'clients': 10, 'seconds': 0.1, **more}


def test_plain_lines_come_at_most_every_few_seconds():
  progress, file, clock = make(interval=5.0)
  with progress as bar:
    for r in range(1, 41):  # one a second
      clock.now += 1
      bar.update(record(r))
  rounds = [int(x) for x in re.findall(r'round (\d+)/100', file.getvalue())]
  assert rounds == [1, 6, 11, 16, 21, 26, 31, 36, 40]


def test_a_line_says_everything():
  progress, file, clock = make(total=60)
  with progress as bar:
    clock.now += 3
    bar.update(record(30, test_accuracy=0.9153, test_loss=0.25, epsilon=1.234567, bytes=1_500_000))
  # 10 clients in 0.1 s; 30 rounds of 0.1 s are left.
  assert file.getvalue().splitlines() == [
    'round 30/60 · 100 clients/s · loss 0.5000 · test loss 0.2500 · accuracy 91.53% · ε 1.235 · '
    'sent 1.5 MB · 0:03 · 0:03 left'
  ]


def test_what_a_claim_does_not_cover_is_marked():
  progress, file, clock = make(total=60)
  with progress as bar:
    clock.now += 3
    bar.update(record(29, test_loss=0.25, covered=['round', 'test_loss']))
    bar.update(record(30, epsilon=1.25, bytes=1_500_000, covered=['round', 'epsilon']))
  assert file.getvalue().splitlines()[-1] == (
    'round 30/60 · 100 clients/s (not covered) · loss 0.5000 (not covered) · test loss 0.2500 · '
    'ε 1.25 · sent 1.5 MB (not covered) · 0:03 · 0:03 left'
  )


def test_the_last_accuracy_stays_in_sight():
  progress, _, _ = make()
  progress.update(record(1, test_accuracy=0.5))
  progress.update(record(2, test_accuracy=None))
  assert 'accuracy 50.00%' in progress.facts()


def test_the_last_round_is_said_even_if_the_run_fails():
  progress, file, _ = make()
  with pytest.raises(KeyError), progress as bar:
    bar.update(record(1))
    bar.update(record(2))
    raise KeyError
  assert [line.split(' · ')[0] for line in file.getvalue().splitlines()] == [
    'round 1/100',
    'round 2/100',
  ]


def test_the_time_left_after_a_resume_without_times_in_the_records():
  progress, _, clock = make(total=100, start=80)
  with progress as bar:
    clock.now += 20
    bar.update({'round': 90})
    # 10 rounds took 20 s, 10 are left.
    assert bar.times() == '0:20 · 0:20 left'


def test_chosen_extra_fields():
  progress, _, _ = make(extra={'layer/norm': 'norm'})
  progress.update(record(1, **{'layer/norm': 2.0, 'epsilon': 1.0}))
  assert 'norm 2' in progress.facts()
  assert 'ε' not in progress.facts()


def test_nan_is_shown():
  progress, _, _ = make()
  progress.update(record(1, train_loss=float('nan')))
  assert 'loss nan' in progress.facts()


def test_a_terminal_gets_a_bar():
  progress, file, _ = make(total=2, terminal=True)
  with progress as bar:
    bar.update(record(1))
    bar.note('a note [bold]as it is[/bold]')
    bar.update(record(2, test_accuracy=0.75))
  text = file.getvalue()
  assert 'round 2/2' in text and '━' in text and 'accuracy 75.00%' in text
  assert 'a note [bold]as it is[/bold]' in text
  assert '\x1b[?25h' in text  # The cursor is there again.


def test_quiet_gets_no_bar_even_on_a_terminal():
  progress, file, _ = make(total=2, terminal=True, quiet=True)
  with progress as bar:
    bar.update(record(1))
  assert '━' not in file.getvalue() and 'round 1/2' in file.getvalue()


def test_nothing_done_says_nothing():
  progress, file, _ = make()
  with progress:
    pass
  assert file.getvalue() == ''


def test_the_rounds_of_several_runs_count_towards_one_whole():
  progress, file, _ = make(total=8, interval=0)
  with progress as whole:
    for done in (2, 5):
      with Share(whole, done) as bar:
        bar.update({'round': 1, 'seconds': 2.0, 'train_loss': 0.5})
        bar.note('of one run')
  text = file.getvalue()
  assert 'round 3/8' in text and 'round 6/8' in text and '0:04 left' in text
  assert 'loss' not in text and 'of one run' not in text


def test_rounds_that_will_not_run_leave_the_whole():
  progress, file, _ = make(total=8, interval=1e9)
  with progress as bar:
    bar.update({'seconds': 2.0})
    bar.expect(1, 5)  # the last line says so, though no round follows
  assert file.getvalue().splitlines()[-1].startswith('round 1/5') and '0:08 left' in file.getvalue()
  progress.expect(6, 5)
  assert progress.times().endswith('0:00 left')


@pytest.mark.parametrize(('seconds', 'text'), [(0, '0:00'), (59.6, '1:00'), (3_661, '1:01:01')])
def test_times(seconds, text):
  assert clock_text(seconds) == text
