"""The driver: submits jobs to the engine on the server's machine, and watches them."""

import concurrent.futures
import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

from fedjax_mem.deploy import engine
from fedjax_mem.deploy.kit import Kit

T = TypeVar('T')
_GRACE = 2.0  # seconds for which a client that is reported dead may come back
_LEAD = 1.0  # seconds of a task before dead clients are looked for


def make(folder: str | os.PathLike[str], payload: bytes, clients: int) -> pathlib.Path:
  """Makes the folder of a job: our two classes, and the payload for the clients.

  Args:
    folder: folder to make.
    payload: what each client's `answering.open` gets, signed by its maker.
    clients: number of clients; more of them ask less often whether there is a task.

  Returns:
    The job's folder, to be submitted.
  """
  job = pathlib.Path(folder)
  config = job / 'app' / 'config'
  config.mkdir(parents=True)
  meta = {
    'name': 'fedjax_mem',
    'resource_spec': {},
    'min_clients': 1,
    'deploy_map': {'app': ['@ALL']},
  }
  server, client = configs(max(0.02, clients / 200))
  (job / 'meta.json').write_text(json.dumps(meta))
  (config / 'config_fed_server.json').write_text(json.dumps(server))
  (config / 'config_fed_client.json').write_text(json.dumps(client))
  (config / 'job.bin').write_bytes(payload)
  return job


def configs(interval: float) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the engine's settings of a job on the server and on a client.

  Args:
    interval: seconds between two questions of a client whether there is a task.
  """
  rounds, answers = engine.CLASSES
  server = {
    'format_version': 2,
    'dead_client_grace_period': _GRACE,
    'dead_client_check_lead_time': _LEAD,
    'server': {'task_request_interval': interval},
    'workflows': [{'id': 'rounds', 'path': rounds, 'args': {}}],
    'components': [],
  }
  client = {
    'format_version': 2,
    'job_heartbeat_interval': engine.HEARTBEAT,
    'executors': [{'tasks': ['blob'], 'executor': {'path': answers, 'args': {}}}],
    'components': [],
  }
  return server, client


class Driver:
  """A session with the engine of the server, by the driver's own certificate."""

  def __init__(self, kit: Kit, work: str | os.PathLike[str], timeout: float = 10.0):
    """Logs in.

    Args:
      kit: the server's kit.
      work: work folder of this machine.
      timeout: seconds that each call may take.

    Raises:
      ValueError: the kit is not the server's.
      ConnectionError: the engine does not answer, or refuses.
    """
    if kit.role != 'server':
      raise ValueError(f'kit must be that of the server, got the kit of client {kit.name!r}.')
    engine.need()
    logging.getLogger('nvflare').addHandler(logging.NullHandler())  # it tells us by exceptions
    self._timeout = timeout
    self._pool = concurrent.futures.ThreadPoolExecutor(1, 'driver')
    folder = pathlib.Path(work).resolve() / 'driver'
    _lay_out(kit.path / 'driver' / 'startup', folder)
    try:
      self._session = self._call(lambda: _session(engine.DRIVER, folder, timeout))
    except ConnectionError:
      self._pool.shutdown(wait=False)
      raise

  def _call(self, call: Callable[[], T], timeout: float | None = None) -> T:
    """Returns the result of a call within a time limit."""
    future = self._pool.submit(call)
    try:
      return future.result(timeout or 2 * self._timeout)
    except concurrent.futures.TimeoutError:
      raise ConnectionError('the engine of the server did not answer in time.') from None
    except Exception as error:
      words = ' '.join(str(error).split()) or type(error).__name__
      raise ConnectionError(f'the engine of the server refused: {words}') from error

  def submit(self, job: str | os.PathLike[str]) -> str:
    """Submits the folder of a job, signed; returns the job's id."""
    return str(self._call(lambda: self._session.submit_job(str(job))))

  def status(self, job: str) -> str:
    """Returns the engine's word for a job, such as 'RUNNING' or 'FINISHED:COMPLETED'."""
    return str(self._call(lambda: self._session.get_job_status(job)))

  def details(self, job: str) -> list[str]:
    """Returns what the engine says of a job's way to each party, such as why one refused it."""
    meta = self._call(lambda: self._session.get_job_meta(job))
    return [str(line) for line in meta.get('job_deploy_detail') or ()]

  def abort(self, job: str) -> None:
    """Aborts a job."""
    self._call(lambda: self._session.abort_job(job))

  def clients(self) -> frozenset[str]:
    """Returns the names of the clients that are registered at the engine."""
    found = self._call(lambda: self._session.get_connected_client_list())
    return frozenset(client.name for client in found)

  def jobs(self) -> tuple[str, ...]:
    """Returns the ids of the jobs that run."""
    found = self._call(lambda: self._session.get_system_info())
    return tuple(job.job_id for job in found.job_info)

  def disable(self, name: str) -> None:
    """Has the engine refuse a client, for good."""
    self._call(lambda: self._session.disable_client(name))

  def close(self) -> None:
    """Logs out."""
    with contextlib.suppress(ConnectionError):
      self._call(lambda: self._session.close(), self._timeout)
    self._pool.shutdown(wait=False, cancel_futures=True)

  def __enter__(self) -> 'Driver':
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


def _session(user: str, folder: pathlib.Path, timeout: float) -> Any:
  """Returns a session that has logged in."""
  from nvflare.fuel.flare_api.flare_api import Session

  session = Session(user, str(folder))
  session.api._print_hci = lambda text: None  # it would greet the user
  session.set_timeout(timeout)
  try:
    session.try_connect(timeout)
  except Exception:
    with contextlib.suppress(Exception):
      session.close()
    raise
  return session


def _lay_out(startup: pathlib.Path, folder: pathlib.Path) -> None:
  (folder / 'local').mkdir(parents=True, exist_ok=True, mode=0o700)
  engine.link_startup(startup, folder / 'startup')
  admin = {
    'idle_timeout': 900.0,
    'login_timeout': 10.0,
    'with_debug': False,
    'authenticate_msg_timeout': 2.0,
    'prompt': '> ',
  }
  engine.write_json(folder / 'local' / 'resources.json', {'format_version': 1, 'admin': admin})
