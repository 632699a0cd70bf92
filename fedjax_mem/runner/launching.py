"""One run in several processes of this machine: started together, watched, and ended together.

The processes are one cluster of jax: where one is missing, all others wait for it, or abort with
words that no user understands. So a process that takes no part watches them: which is the first to
die or to stand still, in which round, and where its words are.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Sequence
from functools import partial

from fedjax_mem.core import validate
from fedjax_mem.runner import status
from fedjax_mem.runner.cores import cores
from fedjax_mem.runner.logs import Logs
from fedjax_mem.runner.worker import BAD_INPUT, STOPS, Worker

# What is started; -P: what the current folder holds is imported only if it is in this process.
PROGRAM = (sys.executable, '-P', '-m', 'fedjax_mem')
_HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LONGEST = 1.0  # seconds of one look at most: more were those in which this process was stopped
_SHOW_CURSOR = '\x1b[?25h'


class ProcessFailed(RuntimeError):
  """A process of the run has died, or does not answer; the message says which, and how to go on."""


class Stopped(KeyboardInterrupt):
  """A run that a signal ended; the message says how to go on.

  Attributes:
    code: exit code of a process that ends so: 128 and the number of the signal.
  """

  def __init__(self, words: str, code: int):
    """Takes the message and the exit code."""
    super().__init__(words)
    self.code = code


@dataclasses.dataclass(frozen=True)
class Patience:
  """How long things are waited for, in seconds.

  Attributes:
    look: between two looks at the processes.
    stopped: a process may be stopped; less than jax's heartbeat, after which others abort.
    silent: a status may stand still while another's changes.
    fresh: a status may stand still of a process that answers.
    missing: status files may be missing before the user is told.
    settle: another cause is looked for, if a death looks like the consequence of one.
    refused: for process 0 to say why the input is bad, when another process has said so.
    follow: the others may take to end when process 0 has ended.
    killed: for the end of killed processes; one that waits for a disk may take so long.
  """

  look: float = 0.1
  stopped: float = 5.0
  silent: float = 30.0
  fresh: float = 5.0
  missing: float = 10.0
  settle: float = 2.0
  refused: float = 3.0
  follow: float = 15.0
  killed: float = 20.0


def launch(
  words: Sequence[str],
  processes: int,
  *,
  out: str | os.PathLike[str],
  devices: int | None = None,
  debug: bool = False,
  program: Sequence[str] | None = None,
  patience: Patience | None = None,
) -> None:
  """Runs a command of `fedjax-mem` in several processes, and returns when all have ended well.

  To be called in the main thread: it hears signals, and the processes end with it.

  Args:
    words: the command, `run` or `resume`, and its options.
    processes: how many.
    out: folder in which the run's folder is or will be made; made if missing.
    devices: host devices of each process on a CPU; None: the cores of this machine are divided.
    debug: show what a process has said in which something failed.
    program: what is started with these words; None: `fedjax-mem`.
    patience: how long things are waited for.

  Raises:
    ValueError: bad input: the words of process 0, or of the first that has some.
    ProcessFailed: a process died or does not answer; all others have been killed.
    Stopped: by Ctrl-C, SIGTERM or SIGHUP; after a checkpoint, if that had begun.
  """
  validate.integer(processes=processes)
  if devices is not None:
    validate.integer(devices=devices)
  each = max(1, cores() // processes) if devices is None else devices
  again = f'fedjax-mem launch --processes {processes}'
  again += '' if devices is None else f' --devices {devices}'
  with (
    Logs(pathlib.Path(out), processes) as logs,
    tempfile.TemporaryDirectory(prefix='fedjax-mem-', ignore_cleanup_errors=True) as told,
    _Heard() as heard,
    contextlib.ExitStack() as stack,
  ):
    workers: list[Worker] = []
    watch = _Watch(workers, logs, heard, again, debug, patience or Patience())
    stack.callback(watch.kill)  # whatever happens, nothing is left
    port = _free_port()
    for index in range(processes):
      file = pathlib.Path(told) / f'status-{index}.json'
      part = {
        'coordinator': f'127.0.0.1:{port}',
        'processes': processes,
        'process': index,
        'devices': each,
        'asked': devices is not None,
        'status': str(file),
      }
      process = start([*(program or PROGRAM), *words], part, logs.path(index))
      workers.append(Worker(index, process, partial(logs.path, index), file))
    watch.run()


def start(
  command: Sequence[str], part: dict[str, object], log: pathlib.Path
) -> 'subprocess.Popen[bytes]':
  """Starts a process of the cluster; the output of process 0 goes where this one's goes.

  It leads a session of its own, so that the terminal's signals reach this process alone.

  Args:
    command: what is started.
    part: the process's part in the cluster: `coordinator`, `processes`, `process`, `devices` and
      whether they were `asked` for, `status`.
    log: file to which all else that it says is added.
  """
  with log.open('ab') as file:
    return subprocess.Popen(
      command,
      stdin=subprocess.DEVNULL,
      stdout=None if part['process'] == 0 else file,
      stderr=file,
      start_new_session=True,
      env=os.environ
      | {
        status.CLUSTER: json.dumps(part),
        status.PARENT: str(os.getpid()),
        'PYTHONPATH': os.pathsep.join(x or os.getcwd() for x in sys.path),
        'PYTHONUNBUFFERED': '1',  # the last words of a process that is killed are in its log
        'PYTHONFAULTHANDLER': '1',
      },
    )


class _Watch:
  """Watches the processes until all have ended, or until one is the reason to end all."""

  def __init__(
    self,
    workers: list[Worker],
    logs: Logs,
    heard: '_Heard',
    again: str,
    debug: bool,
    patience: Patience,
  ):
    self._workers, self._logs, self._heard = workers, logs, heard
    self._again, self._debug, self._patience = again, debug, patience
    self._passed: list[int] = []  # signals that process 0 was told
    self._last = self._told = time.monotonic()

  def run(self) -> None:
    """Returns when all processes have ended well; raises as `launch`."""
    while not self._done():
      self._look()
      self._judge()
      self._tell_missing()

  def _done(self) -> bool:
    return all(x.code == 0 for x in self._workers)

  def _ended(self) -> bool:
    return all(x.code is not None for x in self._workers)

  def _look(self) -> None:
    time.sleep(self._patience.look)
    now = time.monotonic()
    step, self._last = min(now - self._last, _LONGEST), now
    for number in self._heard.new():
      self._pass_on(number)
    for worker in self._workers:
      worker.look(step)
    self._logs.follow(self._folder)

  def _until(self, found: Callable[[], bool], seconds: float) -> None:
    """Goes on looking until something is so, for some seconds at most."""
    ends = time.monotonic() + seconds
    while not found() and time.monotonic() < ends:
      self._look()

  @property
  def _folder(self) -> str | None:
    return self._workers[0].said.get('folder')

  def _pass_on(self, number: int) -> None:
    """Tells process 0, which stops after a checkpoint, and the others with it."""
    if number == signal.SIGINT and signal.SIGINT in self._passed:
      self.kill()
      raise Stopped(f'ended at once{self._go_on()}', 128 + number)
    self._passed.append(number)
    self._workers[0].tell(number)

  def _judge(self) -> None:
    """Raises if what the processes have come to is a reason to end all of them."""
    first, others = self._workers[0], self._workers[1:]
    if any(x.code == BAD_INPUT for x in self._workers):
      self._until(lambda: first.code is not None, self._patience.refused)
      self._refuse()
    if first.code in STOPS or (first.code is not None and -first.code in self._passed):
      self._stop()
    culprit = self._culprit()
    if culprit is None and first.code == 0:
      self._follow(self._ended)
      culprit = self._culprit() or next((x for x in others if x.code != 0), None)
    # Nobody told this one to stop through process 0; has somebody told both?
    stray = next((x for x in others if x.code in STOPS), None)
    if culprit is None and stray and not self._passed and first.code is None:
      self._follow(lambda: first.code is not None)
      culprit = stray if first.code is None else None
    if culprit is not None:
      self._fail(culprit)

  def _follow(self, found: Callable[[], bool]) -> None:
    """Gives processes some time to end because others have; a death ends it."""
    self._until(lambda: found() or self._culprit() is not None, self._patience.follow)

  def _culprit(self) -> Worker | None:
    """Returns the process because of which all have to end, None if there is none."""
    patience, alive = self._patience, [x for x in self._workers if x.code is None]
    dead = [x for x in self._workers if x.died]
    standing = [
      x
      for x in alive
      if x.halted > patience.stopped
      or (x.still > patience.silent and any(y.still < patience.fresh for y in alive))
    ]
    if not dead:
      return max(standing, key=lambda x: (x.halted, x.still), default=None)
    if all(x.lost for x in dead):  # for what reason? it may show a moment later
      self._until(lambda: any(x.died and not x.lost for x in self._workers), patience.settle)
    dead = [x for x in self._workers if x.died]
    slow = [x for x in self._workers if x.code is None and (x.halted or x.still > patience.fresh)]
    return min([*dead, *slow], key=_blame)

  def _refuse(self) -> None:
    self.kill()
    refused = [x for x in self._workers if x.code == BAD_INPUT]
    speaks = next((x for x in (self._workers[0], *refused) if x.words('error')), refused[0])
    last = [x.strip() for x in speaks.tail().splitlines() if x.strip()][-1:]
    self._show(speaks)
    raise ValueError(speaks.words('error') or ''.join(last) or 'bad input, without a word of it')

  def _stop(self) -> None:
    first = self._workers[0]
    if first.code in STOPS and self._folder:  # after a checkpoint of all
      self._until(self._ended, self._patience.follow)
    self.kill()
    code = first.code if first.code in STOPS else 128 - (first.code or 0)
    said = first.words('interrupted') if first.code in STOPS else ''
    said = said.replace('go on with: fedjax-mem resume ', f'go on with: {self._again} resume ')
    raise Stopped(said or f'{signal.Signals(code - 128).name}: ended{self._go_on()}', code)

  def _fail(self, culprit: Worker) -> None:
    first, end = self._workers[0], culprit.end()
    where = culprit.where() or first.where() or 'at its start'
    go_on = '; the run itself is finished' if first.code == 0 else self._go_on()
    self.kill()
    self._logs.keep()
    self._show(culprit)
    said = culprit.words('failed')
    told = (
      f'process {culprit.index}: {end}, {where}; its words: {self._logs.path(culprit.index)}{go_on}'
    )
    if culprit is first and culprit.code == 1 and said and not culprit.lost:
      # It has ended in order, and knows better what helps.
      print(f'fedjax-mem: {told}', file=sys.stderr)
      raise ProcessFailed(said)
    if said:
      print(f'fedjax-mem: failed: {said}', file=sys.stderr)
    raise ProcessFailed(told)

  def _show(self, worker: Worker) -> None:
    if self._debug:
      print(worker.tail(), file=sys.stderr)

  def _go_on(self) -> str:
    return f'; go on with: {self._again} resume {self._folder}' if self._folder else ''

  def _tell_missing(self) -> None:
    now = time.monotonic()
    missing = [str(x.index) for x in self._workers if not x.said and x.code is None]
    if missing and now - self._told > self._patience.missing:
      self._told = now
      print(f'waiting for processes: {", ".join(missing)}', file=sys.stderr)

  def kill(self) -> None:
    """Kills all processes that are left, and waits for their end."""
    left = [x for x in self._workers if x.code is None]
    for worker in left:
      worker.kill()
    ends = time.monotonic() + self._patience.killed
    for worker in left:
      worker.wait(max(0.0, ends - time.monotonic()))
    killed = any((x.code or 0) < 0 for x in self._workers[:1])
    if killed and sys.stdout is not None and sys.stdout.isatty():
      print(_SHOW_CURSOR, flush=True)  # the progress bar of process 0 had hidden it


def _blame(worker: Worker) -> tuple[int, int, int]:
  """Returns how little a process that ended or stands still is to blame: the least is the cause."""
  if worker.code is None:
    return 2, 0, worker.index
  if worker.lost:
    return 3, worker.seen, worker.index
  kill = worker.code < 0 and worker.code != -signal.SIGABRT
  return 0 if kill else 1, worker.seen, worker.index


class _Heard:
  """Collects the signals that end a run, in place of ending this process.

  SIGTERM and SIGHUP stay ignored where they are (`nohup`).
  """

  def __init__(self) -> None:
    self._numbers: list[int] = []
    self._before: dict[int, object] = {}

  def __enter__(self) -> '_Heard':
    # Ignored, as by some shells, it would hide how children have ended.
    self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in _HEARD:
      if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
        self._before[number] = signal.signal(number, self._hear)
    return self

  def _hear(self, number: int, frame: types.FrameType | None) -> None:
    del frame
    self._numbers.append(number)

  def new(self) -> list[int]:
    """Returns the signals since the last call, in their order."""
    count = len(self._numbers)  # more may come meanwhile
    found, self._numbers[:count] = self._numbers[:count], []
    return found

  def __exit__(self, *error: object) -> None:
    for number, before in self._before.items():
      # None: set by other code than Python's, which cannot be set again from here.
      signal.signal(number, signal.SIG_DFL if before is None else before)  # type: ignore[arg-type]


def _free_port() -> int:
  """Returns a port of this machine on which nobody listens."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    return int(probe.getsockname()[1])
