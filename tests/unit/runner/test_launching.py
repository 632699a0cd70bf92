"""Launched runs: how they end, who is to blame, where the words are, and that nothing is left."""

import contextlib
import dataclasses
import json
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import psutil
import pytest

from fedjax_mem.runner import launching
from fedjax_mem.runner.launching import Patience, ProcessFailed, Stopped

FAKE = pathlib.Path(__file__).parents[2] / 'reference' / 'launched.py'
QUICK = Patience(look=0.02, stopped=0.6, missing=0.5, settle=1, refused=1, follow=1.5)
SOON = dataclasses.replace(QUICK, silent=2.5, fresh=1.5)
LOST = "say('fedjax-mem: failed: XlaRuntimeError: Gloo all-reduce failed: ...'); os._exit(1)"
DRIVER = f"""
import sys
from fedjax_mem.cli import main
from fedjax_mem.runner import launching
launching.PROGRAM = (sys.executable, {str(FAKE)!r}, *sys.argv[1:3])
sys.exit(main.main(['launch', '--processes', '2', 'run', 'x', '--out', sys.argv[1] + '/out']))
"""


def running(pid):
  try:
    return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False


def pids(place):
  file = place / 'pids'
  return [int(x) for x in file.read_text().split()] if file.exists() else []


def wait(found, seconds=10):
  ends = time.monotonic() + seconds
  while not found():
    assert time.monotonic() < ends, 'it never came to that'
    time.sleep(0.02)


@pytest.fixture
def place(tmp_path, monkeypatch):
  """A folder; at the end of the test no process is left, and no file of theirs elsewhere."""
  monkeypatch.delenv('PYTHONUNBUFFERED', raising=False)
  monkeypatch.setenv('TMPDIR', str(tmp_path))
  monkeypatch.setattr(launching.tempfile, 'tempdir', None)
  yield tmp_path
  left = [x for x in pids(tmp_path) if running(x)]
  for pid in left:
    os.kill(pid, signal.SIGKILL)
  assert not left
  assert not list(tmp_path.glob('fedjax-mem-*'))


@pytest.fixture
def launch(place, capfd):
  """Returns a function that launches a plan and returns what came of it."""

  def run(*plan, meanwhile=None, patience=QUICK, words=('run', 'x'), **options):
    named = json.dumps(dict(enumerate(plan)))
    program = (sys.executable, str(FAKE), str(place), named)
    thread = threading.Thread(target=meanwhile or (lambda: None))
    thread.start()
    began, error = time.monotonic(), None
    try:
      options = {'out': place / 'out', 'program': program, 'patience': patience} | options
      launching.launch(words, len(plan), **options)
    except (ValueError, ProcessFailed, Stopped) as caught:
      error = caught
    finally:
      thread.join()
    seconds, said = time.monotonic() - began, capfd.readouterr()
    assert not [x for x in pids(place) if running(x)]
    return types.SimpleNamespace(error=error, out=said.out, err=said.err, seconds=seconds)

  return run


def log(place, index):
  return (place / 'out' / 'a-run' / 'logs' / f'process-{index}.txt').read_text()


def hidden(place):
  return list((place / 'out').glob('.launch-*'))


# Runs that end well.


@pytest.mark.parametrize('count', [1, 3])
def test_all_end_well_and_their_words_are_in_the_folder(launch, place, count):
  both = "begin(); print('out', INDEX, TOLD['devices']); say(f'err {INDEX}'); os._exit(0)"
  ended = launch(*[both] * count, devices=4)
  assert ended.error is None and (ended.out, ended.err) == ('out 0 4\n', '')
  assert [log(place, 0), *(log(place, i) for i in range(1, count))] == [
    'err 0\n',
    *(f'out {i} 4\nerr {i}\n' for i in range(1, count)),
  ]
  assert not hidden(place)


def test_each_is_told_its_part_and_its_parent(launch, place, monkeypatch):
  monkeypatch.setattr(launching, 'cores', lambda: 7)
  say = 'import sys; say(json.dumps([TOLD, sys.argv[3:], os.environ.get("FEDJAX_MEM_PARENT")]))'
  ended = launch(f'{say}; begin()', f'{say}; begin()', words=('run', 'c', '--set', 'a=b'))
  assert ended.error is None
  told = [json.loads(log(place, i)) for i in range(2)]
  parts = [x[0] for x in told]
  assert [x[1:] for x in told] == [[['run', 'c', '--set', 'a=b'], str(os.getpid())]] * 2
  assert len({x['coordinator'] for x in parts}) == len({x.pop('status') for x in parts}) - 1
  host, port = parts[0].pop('coordinator').split(':')
  assert host == '127.0.0.1' and int(port) > 0 and parts[1].pop('coordinator')
  alike = {'processes': 2, 'devices': 3, 'asked': False}
  assert parts == [{**alike, 'process': i} for i in range(2)]


def test_logs_of_an_earlier_launch_stay(launch, place):
  for number in range(3):
    assert launch(f"say('part {number}'); begin()").error is None
  said = [log(place, x) for x in ('0', '0.1', '0.2')]
  assert said == ['part 2\n', 'part 0\n', 'part 1\n']


def test_logs_that_cannot_be_moved_stay_where_they_are(launch, place):
  ended = launch("RUN.mkdir(parents=True); (RUN / 'logs').touch(); begin(); say('here')")
  (folder,) = hidden(place)
  assert ended.error is None and (folder / 'process-0.txt').read_text() == 'here\n'


def test_who_is_waited_for_is_said(launch):
  ended = launch(*['time.sleep(1.2 * (INDEX % 2)); begin()'] * 4)
  assert ended.error is None and ended.err == 'waiting for processes: 1, 3\n' * 2


# Bad input.


def test_bad_input_is_said_once_and_leaves_nothing(launch, place):
  bad = "say(f'warning'); say(f'fedjax-mem: error: rounds must be {INDEX}'); os._exit(2)"
  ended = launch(f'time.sleep(0.5); {bad}', bad)
  assert isinstance(ended.error, ValueError) and str(ended.error) == 'rounds must be 0'
  assert ended.err == '' and not (place / 'out').exists()


def test_bad_input_of_another_process_is_said_if_the_first_has_none(launch):
  says = "say('fedjax-mem: error: {}')".format
  ended = launch(f'{says("first")}; hang()', f'time.sleep(0.5); {says("second")}; os._exit(2)')
  assert isinstance(ended.error, ValueError) and str(ended.error) == 'first'
  ended = launch('hang()', 'hang()', "say('fedjax-mem: error: no data'); os._exit(2)")
  assert isinstance(ended.error, ValueError) and str(ended.error) == 'no data'
  ended = launch(
    f'begin(); gone(1); {LOST}', "begin(); say('usage: what'); os._exit(2)", debug=True
  )
  assert isinstance(ended.error, ValueError) and str(ended.error) == 'usage: what'
  assert ended.err == 'usage: what\n\n'


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'processes': 0}, 'processes must be an integer >= 1, got 0.'),
    ({'processes': True}, 'processes must be an integer >= 1, got True.'),
    ({'processes': 2, 'devices': 0}, 'devices must be an integer >= 1, got 0.'),
    ({'processes': 1, 'out': '/proc/no'}, 'the folder /proc/no must be writable, got '),
  ],
)
def test_bad_numbers_and_folders_are_refused(place, options, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    launching.launch(['run', 'x'], **{'out': place / 'out'} | options)
  assert not (place / 'out').exists()


# Processes that die or stand still.


def test_a_killed_process_ends_all_and_is_named(launch, place):
  ended = launch(
    'begin(); hang()', 'begin(7, "checkpoint"); kill(signal.SIGKILL)', 'begin(); hang()'
  )
  run = place / 'out' / 'a-run'
  assert isinstance(ended.error, ProcessFailed) and ended.seconds < 10
  assert str(ended.error) == (
    f'process 1: killed by SIGKILL, in round 7 (checkpoint); its words: {run}/logs/process-1.txt; '
    f'go on with: fedjax-mem launch --processes 3 resume {run}'
  )
  assert not hidden(place)


def test_what_a_process_has_started_ends_with_it(launch):
  starts = "import subprocess; known(subprocess.Popen(['sleep', '60']).pid)"
  ended = launch(f'{starts}; begin(); hang()', f'{starts}; begin(); kill(signal.SIGSEGV)')
  assert 'process 1: killed by SIGSEGV' in str(ended.error)


def test_the_words_of_a_failure_are_shown_after_megabytes_of_others(launch, place):
  fails = "print('x' * 79 + chr(10), end='' ) or say(('y' * 79 + chr(10)) * 50_000)"
  fails += "; say('fedjax-mem: failed: the loss is not finite'); os._exit(1)"
  ended = launch(f'begin(); gone(1); {LOST}', f'begin(); {fails}', devices=2)
  assert 'process 1: exit code 1, in round 3 (round); its words' in str(ended.error)
  assert ended.err == 'fedjax-mem: failed: the loss is not finite\n'
  assert str(ended.error).endswith(
    f'fedjax-mem launch --processes 2 --devices 2 resume {place / "out" / "a-run"}'
  )
  assert len(log(place, 1)) > 4_000_000


def test_who_ends_because_of_another_is_not_to_blame(launch):
  # seen in one look
  at_once = launch(
    f'begin(); gone(1); {LOST}',
    'begin(); kill(signal.SIGKILL)',
    "begin(); gone(1); say('JAX distributed service: fatal'); kill(signal.SIGABRT)",
    patience=Patience(look=1.5),
  )
  assert 'process 1: killed by SIGKILL' in str(at_once.error)
  # the cause is seen later
  fails = "say('[Gloo] Rank 1 is connected to 1 peer ranks'); begin(); gone(0); time.sleep(0.3)"
  later = launch(f'begin(); {LOST}', f'{fails}; os._exit(3)')
  assert 'process 1: exit code 3' in str(later.error)
  # of two that look like consequences, the first
  two = launch(f'begin(); gone(1); time.sleep(0.3); {LOST}', f'begin(); {LOST}')
  assert 'process 1: exit code 1' in str(two.error)
  # it has no better cause
  alone = launch(f'begin(); {LOST}', 'begin(); hang()')
  assert 'process 0: exit code 1' in str(alone.error) and 'Gloo' in alone.err


def test_the_first_that_dies_is_to_blame(launch):
  ended = launch('begin(); gone(1); time.sleep(0.3); kill(signal.SIGKILL)', 'begin(); os._exit(1)')
  assert 'process 1: exit code 1' in str(ended.error)


def test_a_death_before_the_run_has_a_folder_keeps_the_logs(launch, place):
  ended = launch("say('what'); kill(signal.SIGKILL)", 'hang()')
  (folder,) = hidden(place)
  assert str(ended.error) == (
    f'process 0: killed by SIGKILL, at its start; its words: {folder}/process-0.txt'
  )
  assert (folder / 'process-0.txt').read_text() == 'what\n'


def test_a_stopped_process_does_not_answer(launch):
  for count in (1, 2):
    ended = launch(*['begin(); hang()'] * (count - 1), 'begin(); kill(signal.SIGSTOP)')
    assert f'process {count - 1}: stopped by SIGSTOP: does not answer, in' in str(ended.error)
    assert ended.seconds < 10


def test_a_stopped_process_is_to_blame_for_those_that_wait_for_it_in_vain(launch):
  ended = launch(f'begin(); time.sleep(0.3); {LOST}', 'begin(); kill(signal.SIGSTOP)')
  assert 'process 1: stopped by SIGSTOP' in str(ended.error)


def test_a_process_that_goes_on_in_time_is_left_alone(launch):
  wakes = "begin(); import subprocess; subprocess.Popen(['sh', '-c', f'sleep 0.3; kill -CONT "
  wakes += "{os.getpid()}']); kill(signal.SIGSTOP); time.sleep(1)"
  assert launch(wakes, 'begin(); time.sleep(1)').error is None


SILENT = 'mine = begin(); mine._write = lambda: None; time.sleep({})'


def test_a_process_without_a_sign_of_life_does_not_answer(launch):
  ended = launch('begin(); hang()', SILENT.format(60), patience=SOON)
  assert re.match(r'process 1: does not answer: no sign of life for [2-5] s', str(ended.error))


def test_where_all_are_silent_nobody_is_to_blame(launch):
  assert launch(*[SILENT.format(3.5)] * 2, patience=SOON).error is None


def test_a_process_that_does_not_end_after_the_first_has(launch):
  ended = launch('begin()', 'begin(); hang()')
  assert str(ended.error).startswith('process 1: does not answer')
  assert str(ended.error).endswith('; the run itself is finished')


def test_what_has_started_ends_if_another_cannot_start(place, launch, monkeypatch):
  start = launching.start

  def refuse(command, part, log):
    if part['process']:
      wait(lambda: pids(place))
      raise BlockingIOError('no more processes')
    return start(command, part, log)

  monkeypatch.setattr(launching, 'start', refuse)
  with pytest.raises(BlockingIOError):
    launch('hang()', '')
  assert not [x for x in pids(place) if running(x)] and not (place / 'out').exists()


# Signals.


def press(place, *numbers):
  """Returns what sends signals to this process once all fakes have begun."""

  def send():
    for number in numbers:
      wait(lambda: (place / 'out' / 'a-run' / 'logs').exists())
      time.sleep(0.5)
      os.kill(os.getpid(), number)

  return send


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_process_0_alone_and_its_words_are_passed_on(launch, place, number):
  before = signal.signal(number, signal.default_int_handler)  # `nohup` may ignore it
  try:
    heeds = "signal.signal(signal.%s, lambda *x: say('heard')); begin(); gone(0); time.sleep(0.5); "
    heeds += "say('followed'); os._exit(%d)"
    follows = heeds % (number.name, 128 + number)
    ended = launch('heeds()', follows, meanwhile=press(place, number))
    assert signal.getsignal(number) is signal.default_int_handler
  finally:
    signal.signal(number, before)
  assert isinstance(ended.error, Stopped) and ended.error.code == 128 + number
  assert str(ended.error) == (
    f'{number.name}: stopped; go on with: fedjax-mem launch --processes 2 resume '
    f'{place / "out" / "a-run"}'
  )
  assert log(place, 1) == 'followed\n' and ended.out == 'round 3\n'


def test_who_does_not_follow_is_killed(launch, place):
  aborts = f'begin(); gone(0); {LOST}'
  ended = launch('heeds()', 'begin(); hang()', aborts, meanwhile=press(place, signal.SIGTERM))
  assert isinstance(ended.error, Stopped) and ended.error.code == 143


def test_a_second_ctrl_c_ends_all_at_once(launch, place):
  hangs = 'mine = begin(); hang()'
  ended = launch(hangs, hangs, meanwhile=press(place, signal.SIGINT, signal.SIGINT))
  assert isinstance(ended.error, Stopped) and ended.error.code == 130
  run = place / 'out' / 'a-run'
  go_on = f'go on with: fedjax-mem launch --processes 2 resume {run}'
  assert str(ended.error) == f'ended at once; {go_on}' and ended.seconds < 10


def test_a_signal_before_process_0_hears_signals_ends_it(launch, place):
  def early():
    wait(lambda: len(pids(place)) == 2)
    os.kill(os.getpid(), signal.SIGTERM)

  ended = launch('time.sleep(60)', 'hang()', meanwhile=early)
  assert isinstance(ended.error, Stopped) and ended.error.code == 143
  assert str(ended.error) == 'SIGTERM: ended' and not (place / 'out').exists()


def test_a_signal_to_process_0_itself_is_as_one_to_its_parent(launch, place):
  sends = "begin(); time.sleep(0.3); os.kill(of(0)['pid'], signal.SIGTERM); gone(0); os._exit(143)"
  assert launch('heeds()', sends).error.code == 143


def test_a_process_that_ends_by_a_signal_of_its_own_is_named(launch):
  ended = launch('begin(); hang()', 'begin(); os._exit(143)')
  assert ended.seconds < 10
  assert 'process 1: exit code 143' in str(ended.error)


# The command, in a process of its own.


def driver(place, *plan):
  named = json.dumps(dict(enumerate(plan)))
  return [sys.executable, '-c', DRIVER, str(place), named]


def test_all_end_with_a_parent_that_is_killed_also_if_they_are_stopped(place):
  hang = 'begin(); print("begun", flush=True); hang()'
  command = driver(place, hang, 'begin(); kill(signal.SIGSTOP)')
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
    assert parent.stdout.readline() == b'begun\n'
    wait(lambda: psutil.Process(pids(place)[-1]) and _stopped(place))
    parent.kill()
  wait(lambda: not [x for x in pids(place) if running(x)], 5)
  for path in place.glob('fedjax-mem-*'):
    shutil.rmtree(path)


def _stopped(place):
  return any(psutil.Process(x).status() == psutil.STATUS_STOPPED for x in pids(place))


def test_on_a_terminal_the_first_sees_it_and_ctrl_c_reaches_the_parent_alone(place, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join(sys.path))
  tells = 'print("terminal", sys.stdout.isatty(), os.get_terminal_size(1).columns > 0); heeds()'
  command = driver(place, tells, 'begin(); gone(0); os._exit(130)')
  command[2] = 'import os; os.open(os.ttyname(0), os.O_RDWR)\n' + command[2]  # now it is its own
  terminal, end = pty.openpty()
  parent = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, start_new_session=True)
  os.close(end)
  said = b''
  with contextlib.suppress(OSError):  # its other end is closed
    while part := os.read(terminal, 1000):
      said += part
      if said.endswith(b'round 3\r\n'):  # the end of the line may come alone
        os.write(terminal, b'\x03')
  assert parent.wait() == 130
  os.close(terminal)
  assert b'terminal True' in said
  last = said.decode().splitlines()[-1].removeprefix('^C')
  assert last.startswith('fedjax-mem: interrupted: SIGINT: stopped; go on with: fedjax-mem launch')


def test_the_last_line_of_the_command_names_the_process(place):
  command = driver(place, 'begin(); hang()', 'begin(); kill(signal.SIGKILL)')
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  done = subprocess.run(command, capture_output=True, text=True, env=environment)
  assert done.returncode == 1 and done.stdout == ''
  (line,) = done.stderr.splitlines()
  assert line.startswith(
    'fedjax-mem: failed: process 1: killed by SIGKILL, in round 3 (round); its'
  )
