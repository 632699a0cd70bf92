"""The command of the server's machine: it starts the engine, and one job after another.

A job of the engine does not survive much: a client's worker that dies ends it, and a client that
comes back cannot join it. So the truth is the run's folder, and whatever ends a job, the driver
submits the next, which goes on from the newest checkpoint.
"""

import contextlib
import json
import os
import pathlib
import secrets
import shutil
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from fedjax_mem.config.load import Config
from fedjax_mem.deploy import enrolment, job, processes, serving, trust, watch
from fedjax_mem.deploy.data import Expected
from fedjax_mem.deploy.jobs import Driver, make
from fedjax_mem.deploy.kit import Kit
from fedjax_mem.deploy.processes import Engine
from fedjax_mem.report.tracker import read_metrics
from fedjax_mem.runner.folder import RunFolder, create
from fedjax_mem.runner.interrupt import Interrupt
from fedjax_mem.runner.loop import Interrupted, RunFailed
from fedjax_mem.runner.prepare import Ready, facts, get_ready, keeps_root
from fedjax_mem.runner.progress import Progress

_LOGIN = 60.0  # seconds in which the engine's server has to be up
_GATHER = 15.0  # seconds for which the clients that are still missing are waited for
_IDLE = 5  # jobs in a row that end without a round
_LOOK = 0.5  # seconds between two looks at a job
_SURE = 3.0  # seconds for which a client has to be here and not in the job, before that is ended


class Place(NamedTuple):
  """Files by which this command and the server's side of its jobs speak.

  Attributes:
    outcome: how a job has ended.
    rejoin: there if a job is to end, for another with more clients.
    joined: names of the clients that the job can reach.
  """

  outcome: pathlib.Path
  rejoin: pathlib.Path
  joined: pathlib.Path

  @classmethod
  def within(cls, work: pathlib.Path) -> 'Place':
    """Returns the places in a work folder."""
    return cls(work / 'outcome.json', work / 'rejoin', work / 'joined.json')


def begin(
  config: Config, kit: Kit, out: str | os.PathLike[str], data_dir: str | None, repeatable: bool
) -> RunFolder:
  """Returns the folder of a new run, after everything that can be checked is.

  Raises:
    ValueError: bad input; nothing was made.
  """
  ready = _ready(config, kit, data_dir, repeatable)
  root = ready.sim.root if keeps_root(ready) else None
  # From the start: a simulation must not go on with it, even if this process is killed here.
  folder = create(ready.config, out, root, ready.start, deployed=True, clients_by_id=kit.clients)
  said = facts(ready)
  if config.noise_seed is not None:
    said['warnings'].append(
      'noise_seed: every party can compute the noise of all others, so nothing is claimed against '
      'the parties'
    )
  where = data_dir and str(pathlib.Path(data_dir).absolute())
  folder.note(data_dir=where, **said)
  return folder


def reopen(path: pathlib.Path, kit: Kit, repeatable: bool) -> RunFolder:
  """Returns the folder of a run that is to go on.

  Raises:
    ValueError: it is none of this deployment, is finished, or has another configuration by now.
  """
  folder = RunFolder(path)
  said = folder.manifest
  if not said.get('deployed') or said.get('clients_by_id') != list(kit.clients):
    raise ValueError(
      f'{path} must be the folder of a run of this deployment, got one of a simulation or of other '
      'clients.'
    )
  if said.get('status') == 'finished' and (path / 'report.html').exists():
    raise ValueError(f'the run in {path} must be unfinished to go on: it is finished.')
  folder.check_config()
  _ready(folder.config, kit, said.get('data_dir'), repeatable)
  return folder


def _ready(config: Config, kit: Kit, data_dir: str | None, repeatable: bool) -> Ready:
  """Returns the parts of a run, planned as the server's side of a job does.

  Raises:
    ValueError: they do not fit each other, or this deployment.
  """
  processes.check_free(kit.work)
  processes.check_ports(kit)
  trust.check_noise_seed(config, repeatable)
  if config.evaluation.clients:
    raise ValueError(
      'evaluation.clients must be 0 on real machines, whose server has no examples of theirs, got '
      f'{config.evaluation.clients!r}.'
    )
  if config.tracking.use:
    raise ValueError(
      'tracking.use must be empty on real machines, whose records are in the folder of the run, '
      f'got {config.tracking.use!r}.'
    )
  ready = get_ready(job.looped(config), data_dir, {})
  if ready.parts.data.num_clients != len(kit.clients):
    raise ValueError(
      f'data.num_clients must be {len(kit.clients)}, the clients that have kits, got '
      f'{ready.parts.data.num_clients}: set it, or make other kits.'
    )
  serving.planned(ready)
  return ready


def run(folder: RunFolder, kit: Kit, quiet: bool = False) -> list[dict[str, Any]]:
  """Runs the rounds that are left; returns all records.

  Args:
    folder: from `begin` or `reopen`.
    kit: the server's kit, checked.
    quiet: report progress by plain lines, without a bar.

  Raises:
    RunFailed: the run cannot go on; its folder has the last checkpoint.
    Interrupted: by Ctrl-C.
  """
  work, config = kit.work, folder.config
  again = f'fedjax-mem deploy server {folder.path} --kit {kit.path}'
  places = Place.within(work)
  place = {
    'kit': str(kit.path.resolve()),
    'run': str(folder.path.resolve()),
    'data_dir': folder.manifest.get('data_dir'),
    **{name: str(path.resolve()) for name, path in places._asdict().items()},
  }
  records = _records(folder)
  with (
    Progress(config.rounds, len(records), quiet) as bar,
    Interrupt(bar.note, f'ended at once; go on with: {again}', 'ends the engine') as interrupt,
    Engine(kit, work, place) as engine,
  ):
    bar.note(f'folder: {folder.path}')
    bar.note(f'log of the engine: {engine.log}')
    jobs = _Jobs(folder, kit, engine, places, bar, interrupt)
    line = jobs.go()
  if line is None:
    words = f'{interrupt.words}: stopped after round {len(_records(folder))}; go on with: {again}'
    raise Interrupted(words, interrupt.code)
  if line:
    folder.note(status='interrupted', rounds_done=len(_records(folder)))
    raise RunFailed(f'{line} Go on with: {again}')
  return _records(folder)


class _Jobs:
  """Submits jobs and watches them until the run is finished."""

  def __init__(
    self,
    folder: RunFolder,
    kit: Kit,
    engine: Engine,
    places: Place,
    bar: Progress,
    interrupt: Interrupt,
  ):
    self._folder, self._kit, self._engine, self._places = folder, kit, engine, places
    self._bar, self._interrupt = bar, interrupt
    self._shown = len(_records(folder))
    self._apart: float | None = None  # since when a client is here that the job cannot reach
    self._config = folder.config
    self._least = self._config.deploy.min_clients or 1

  def go(self) -> str | None:
    """Returns '' once the run is finished, why it cannot go on, or None after Ctrl-C."""
    driver = self._login()
    if driver is None:
      return None
    with contextlib.closing(driver):
      return self._go(driver)

  def _login(self) -> Driver | None:
    """Returns a session with the engine's server, as soon as it is up; None after Ctrl-C."""
    ends, kit = time.monotonic() + _LOGIN, self._kit
    while not self._interrupt.asked:
      if self._engine.code() is not None:
        raise RunFailed(
          f"the engine's server has ended: is port {kit.port} or {kit.admin_port} taken? See "
          f'{self._engine.log}.'
        )
      try:
        return Driver(kit, self._engine.work)
      except ConnectionError as error:
        if time.monotonic() > ends:
          raise RunFailed(f'{error} See {self._engine.log}.') from error
      time.sleep(_LOOK)
    return None

  def _go(self, driver: Driver) -> str | None:
    payload, idle = self._payload(), 0
    while idle < _IDLE:
      if not self._gathered(driver):
        return None
      before = len(_records(self._folder))
      outcome = self._one(driver, payload)
      self._show()
      if outcome is None:
        return None
      if outcome['status'] == serving.FINISHED:
        return ''
      if outcome['status'] in ('failed', 'refused') and outcome['line']:
        return str(outcome['line'])
      idle = 0 if len(_records(self._folder)) > before else idle + 1
    return f'{_IDLE} jobs in a row ended without a round: see {self._engine.log}.'

  def _payload(self) -> bytes:
    manifest = self._folder.manifest
    where = manifest.get('data_dir')
    ready = get_ready(job.looped(self._config), where, {}, self._folder.start())
    expected = Expected.of(ready.parts.data)
    about = job.Job(manifest['run_id'], self._config, expected, self._kit.clients)
    return job.write(self._kit.sign, about)

  def _gathered(self, driver: Driver) -> bool:
    """Waits for clients; returns whether there are enough, and false after Ctrl-C."""
    said, ends = '', None
    wanted = set(self._kit.clients)
    while not self._interrupt.asked:
      here = self._here(driver)
      missing = sorted(wanted - set(enrolment.revoked(self._kit)) - here)
      enough = len(here) >= self._least
      ends = time.monotonic() + _GATHER if enough and ends is None else ends
      if not missing or (enough and ends is not None and time.monotonic() > ends):
        return True
      if said != (said := f'waiting for clients: {", ".join(missing)}'):
        self._bar.note(said)
      self._alive()
      time.sleep(_LOOK)
    return False

  def _here(self, driver: Driver) -> set[str]:
    """Returns the clients that are registered and not revoked."""
    try:
      return set(driver.clients()) - set(enrolment.revoked(self._kit))
    except ConnectionError:
      return set()

  def _alive(self) -> None:
    if self._engine.code() is not None:
      raise RunFailed(f"the engine's server has ended: see {self._engine.log}.")

  def _one(self, driver: Driver, payload: bytes) -> dict[str, Any] | None:
    """Runs one job; returns its outcome, or None after Ctrl-C."""
    self._apart = None
    for path in self._places:
      path.unlink(missing_ok=True)
    with _job(self._engine.work, payload, len(self._kit.clients)) as made:
      number = driver.submit(made)
    while not self._interrupt.asked:
      self._alive()
      self._show()
      outcome = _read(self._places.outcome)
      if outcome is not None:
        if outcome['status'] == serving.AGAIN:
          self._ended(driver, number)
        return outcome
      try:
        if driver.status(number).startswith('FINISHED'):
          lost: dict[str, Any] = {'status': 'lost', 'line': ''}
          return _read(self._places.outcome) or lost
      except ConnectionError:
        pass
      self._rejoined(driver)
      time.sleep(_LOOK)
    return None

  def _ended(self, driver: Driver, number: str) -> None:
    """Waits until the engine has put a job away, so that the next one can run.

    By itself it takes ten seconds to end. Its process, the only one below the engine's first, has
    saved all that counts.
    """
    for pid in watch.descendants(self._engine.pid):
      watch.kill(pid)
    ends = time.monotonic() + _GATHER
    while time.monotonic() < ends:
      with contextlib.suppress(ConnectionError):
        if driver.status(number).startswith('FINISHED'):
          return
      time.sleep(0.2)
    with contextlib.suppress(ConnectionError):
      driver.abort(number)

  def _rejoined(self, driver: Driver) -> None:
    """Asks the job to end if a client is here that it cannot reach.

    Not at once: one that was silent shows itself to the engine and to the job at different times.
    """
    joined = _read(self._places.joined)
    if joined is None or not self._here(driver) - set(joined):
      self._apart = None
    elif self._apart is None:
      self._apart = time.monotonic()
    elif time.monotonic() - self._apart > _SURE:
      self._places.rejoin.touch()

  def _show(self) -> None:
    records = _records(self._folder)
    for record in records[self._shown :]:
      self._bar.update(record)
    self._shown = len(records)


@contextlib.contextmanager
def _job(work: pathlib.Path, payload: bytes, clients: int) -> Iterator[pathlib.Path]:
  """Yields the folder of a job, which is removed once it is submitted."""
  folder = work / f'job-{secrets.token_hex(8)}'
  try:
    yield make(folder, payload, clients)
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _records(folder: RunFolder) -> list[dict[str, Any]]:
  path = folder.path / 'metrics.jsonl'
  return read_metrics(path) if path.exists() else []


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns the content of a JSON file; None if there is none."""
  try:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
  except (OSError, ValueError):
    return None
