"""Starts and stops the engine on this machine. Nothing that it starts outlives `stop`."""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import filelock

from fedjax_mem.deploy import engine, enrolment, watch
from fedjax_mem.deploy.kit import Kit

PLACE = 'FEDJAX_MEM_DEPLOY'  # names the place file: what this machine's own command says to a job
LOG = 'engine.log'
_CODE = str(pathlib.Path(__file__).resolve().parents[2])  # a job runs the package that runs here


class Engine:
  """The engine's processes on this machine.

  Attributes:
    work: the work folder: `place.json`, `engine.log` and the engine's own folder `engine/`.
    log: the engine's log file.
  """

  def __init__(
    self,
    kit: Kit,
    work: str | os.PathLike[str],
    place: Mapping[str, Any],
    lock: filelock.BaseFileLock | None = None,
  ):
    """Starts the engine's server or client, by the kit's role.

    Args:
      kit: the party's kit.
      work: work folder of this machine, made if missing (`kit.work` of the commands); nobody else
        may write there.
      place: what the jobs' classes are told on this machine, as JSON; no job can change it.
      lock: from `locked` of the work folder, which stays with the caller; None: it is locked until
        the engine has ended.

    Raises:
      ValueError: NVIDIA FLARE is not installed, or an engine runs in this folder already.
    """
    engine.need()
    self.work = pathlib.Path(work).resolve()
    self.work.mkdir(parents=True, exist_ok=True, mode=0o700)
    self._lock = locked(self.work) if lock is None else None
    self.log = self.work / LOG
    self._place = self.work / 'place.json'
    # What is left of an engine whose starter was killed has a second at most.
    _end(lambda: list(_told(str(self._place))), 10.0)
    engine.write_json(self._place, dict(place))
    folder = self.work / 'engine'
    engine.lay_out(kit.startup, folder, kit.role, kit.clients, enrolment.revoked(kit))
    self._before = self.log.stat().st_size if self.log.exists() else 0
    with self.log.open('ab') as log:
      self._process = subprocess.Popen(
        [
          *(sys.executable, '-m', 'fedjax_mem.deploy.parent'),
          *(kit.role, str(folder), kit.name, str(os.getpid())),
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=self._environment(),
        start_new_session=True,
      )

  def _environment(self) -> dict[str, str]:
    here = os.path.dirname(sys.executable)
    return os.environ | {
      PLACE: str(self._place),
      'PATH': os.pathsep.join((here, os.environ.get('PATH', os.defpath))),
      'PYTHONPATH': os.pathsep.join(filter(None, (_CODE, os.environ.get('PYTHONPATH')))),
      'PYTHONUNBUFFERED': '1',
      'PYTHONSAFEPATH': '1',  # the folder that it runs in is no place of modules
    }

  @property
  def pid(self) -> int:
    """The id of the engine's first process."""
    return self._process.pid

  def code(self) -> int | None:
    """Returns the exit code of the engine's first process, None while it runs."""
    return self._process.poll()

  def wait(self, timeout: float) -> int | None:
    """Waits up to `timeout` seconds for the engine's end; returns as `code`."""
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(timeout)
    return self.code()

  def registered(self) -> bool:
    """Returns whether the server has admitted this client since it was started."""
    return b'Successfully registered client' in self._said()

  def _said(self) -> bytes:
    """Returns what is in the log since the engine was started."""
    with self.log.open('rb') as log:
      log.seek(self._before)
      return log.read()

  def refused(self) -> str | None:
    """Returns why the server does not admit this client, one line, None if it does not say so."""
    found = re.findall(rb'registration rejected: (.*)', self._said())
    if not found:
      return None
    words = ' '.join(found[-1].decode(errors='replace').split())
    if 'is disabled' in words:
      return f'the server has revoked this client; ask whoever runs the server ({words}).'
    return f'the server does not admit this client: {words}; is its kit of this deployment?'

  def members(self) -> list[int]:
    """Returns the ids of all processes of this engine, also of those that lost their parent."""
    found = dict.fromkeys([self.pid] if self.code() is None else [])
    found |= dict.fromkeys(watch.descendants(self.pid))
    found |= dict.fromkeys(_told(str(self._place)))
    return list(found)

  def stop(self, timeout: float = 10.0) -> None:
    """Kills all processes of this engine and waits for their end.

    Args:
      timeout: seconds after which it gives up.

    Raises:
      RuntimeError: a process is still there.
    """
    _end(self.members, timeout)
    if self._lock is not None:
      self._lock.release()

  def __enter__(self) -> 'Engine':
    return self

  def __exit__(self, *error: object) -> None:
    self.stop()


def check_free(work: str | os.PathLike[str]) -> None:
  """Raises `ValueError` if an engine runs in a work folder: only one may with a kit."""
  if pathlib.Path(work).is_dir():
    locked(pathlib.Path(work)).release()


def check_ports(kit: Kit, timeout: float = 3.0) -> None:
  """Checks that nobody listens on the ports of the server's kit.

  Args:
    kit: the server's kit.
    timeout: seconds for which they may still be taken: an engine whose command was killed ends
      about a second later.

  Raises:
    ValueError: another program does.
  """
  ends = time.monotonic() + timeout
  for port in (kit.port, kit.admin_port):
    while taken := _taken(port):
      if time.monotonic() > ends:
        raise ValueError(
          f'port {port} of the kit must be free on this machine, got one that is taken ({taken}): '
          'stop the program that listens there, or have kits made with another port.'
        )
      time.sleep(0.1)


def _taken(port: int) -> str:
  """Returns why a port cannot be listened on; '' if it can."""
  with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ports of closed connections do
    try:
      probe.bind(('', port))
    except OSError as error:
      return error.strerror or str(error)
  return ''


def place(work: str | os.PathLike[str]) -> dict[str, Any] | None:
  """Returns the place file of the engine that runs in a work folder, None if none runs."""
  work = pathlib.Path(work)
  if not work.is_dir():
    return None
  try:
    locked(work).release()
  except ValueError:
    with contextlib.suppress(OSError, ValueError):
      return dict(json.loads((work / 'place.json').read_text()))
    return {}
  return None


def locked(work: pathlib.Path) -> filelock.BaseFileLock:
  """Returns the lock of a work folder, held; the system frees it when this process ends.

  Raises:
    ValueError: another process holds it.
  """
  lock = filelock.FileLock(work / 'lock', timeout=0)
  try:
    lock.acquire()
  except filelock.Timeout:
    raise ValueError(
      f'{work} is in use by another process: only one may run with a kit; stop that one first.'
    ) from None
  return lock


def _end(members: Callable[[], list[int]], timeout: float) -> None:
  """Kills processes until there are none, or raises `RuntimeError` after `timeout` seconds."""
  deadline = time.monotonic() + timeout
  while left := members():
    for pid in left:
      watch.kill(pid)
    if time.monotonic() > deadline:
      raise RuntimeError(f'processes {left} of the engine did not end; kill them by hand.')
    time.sleep(0.02)


def _told(place: str) -> Iterator[int]:
  """Yields the ids of the processes that were told of a place file, save this one."""
  import psutil

  for process in psutil.process_iter():
    with contextlib.suppress(psutil.Error, OSError):
      if (
        process.pid != os.getpid()
        and process.status() != psutil.STATUS_ZOMBIE
        and process.environ().get(PLACE) == place
      ):
        yield process.pid
