"""Several processes as one cluster: how they meet, what they agree on, how they leave.

Every process runs the same code on the same configuration; the devices of all of them are one mesh.
Process 0 leads: it holds the lock of the run's folder, writes records and ledgers, and decides what
depends on time. It tells the others over the channel of `jax.distributed`, which is that of the
cluster alone: how many rounds the next segment has, whether a checkpoint follows, the secret root.

Before jax starts the processes meet at the coordinator's address (`_meet`). So a process that does
not come is named, as is one with another version or configuration; of a cluster that is not
complete jax says only that a deadline is exceeded, and ends the process.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from fedjax_mem._version import __version__
from fedjax_mem.core import validate
from fedjax_mem.runner import meeting
from fedjax_mem.runner.status import CLUSTER, Status

T = TypeVar('T')
WAIT = 'FEDJAX_MEM_WAIT'  # seconds to wait for the other processes
_WAIT = 120
_HEARTBEAT = 10  # seconds after which a process that says nothing counts as dead
_KEPT = 200  # what was said and is not deleted yet
_LONG = 24 * 3600 * 1000  # milliseconds that a process waits for what another says
_LOOK = 5000  # milliseconds after which it looks whether process 0 has refused


class Broken(RuntimeError):
  """Another process has ended, or refused; the message is its own."""


@dataclasses.dataclass
class Cluster:
  """The processes of a run, as one of them sees it.

  Attributes:
    process: number of this process, from 0.
    processes: how many there are.
    status: what a parent reads of this process; None: it has none.
    begun: whether this package has begun the cluster, and ends the process with it.
    agreed_refusal: whether what is being raised is raised by all processes.
  """

  process: int = 0
  processes: int = 1
  status: Status | None = None
  begun: bool = False
  agreed_refusal: bool = False
  _said: int = 0
  _began: int = 0
  _refusals: int = 0
  _told_refusal: bool = False

  @property
  def leads(self) -> bool:
    """Whether this process writes and decides."""
    return self.process == 0

  def at(self, phase: str, round: int | None = None) -> None:
    """Says to a parent where this process is; see `Status.at`."""
    if self.status is not None:
      self.status.at(phase, round)

  def agree(self, value: T) -> T:
    """Returns the value that process 0 gives, on all processes; what JSON can hold.

    Raises:
      ValueError: process 0 has refused.
      Broken: process 0 has failed.
    """
    if self.processes == 1:
      return value
    name = self._next('agreed')
    if self.leads:
      self._tell(name, {'value': value})
      return value
    agreed: T = self._heard(name)['value']
    return agreed

  def _next(self, kind: str) -> str:
    """Returns the name of what is said next; process 0 deletes what was said long ago.

    The others have read that: process 0 waits for them in every segment of rounds.
    """
    self._said += 1
    if self.leads and self._said > _KEPT:
      for old in ('agreed', 'all'):
        _client().key_value_delete(f'{self._own}/{old}/{self._said - _KEPT}')
    return f'{self._own}/{kind}/{self._said}'

  @property
  def _own(self) -> str:
    """The folder of names of this run; after a refusal all begin with another one."""
    return f'fedjax_mem/{self._refusals}'

  def _tell(self, name: str, value: Any) -> None:
    _client().key_value_set(name, json.dumps(value))

  def _heard(self, name: str) -> Any:
    """Returns what a process says under a name, unless process 0 refuses meanwhile.

    Raises:
      ValueError: process 0 has refused.
      Broken: process 0 has failed.
    """
    ends = time.monotonic() + _LONG / 1000
    while True:
      try:
        return json.loads(_client().blocking_key_value_get(name, _LOOK))
      except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error) or time.monotonic() > ends:
          raise
      if not self.leads:
        self._check_refused()

  def _check_refused(self) -> None:
    try:
      told = json.loads(_client().key_value_try_get(f'{self._own}/refused'))
    except jax.errors.JaxRuntimeError:
      return  # it has not
    self._begin_anew()
    self._told_refusal = True
    raise (ValueError if told['bad'] else Broken)(told['words'])

  def _begin_anew(self) -> None:
    self._refusals += 1
    self._said = 0

  def all(self, value: Any) -> list[Any]:
    """Returns what every process gives, in their order; what JSON can hold.

    Raises:
      ValueError: process 0 has refused.
      Broken: process 0 has failed.
    """
    if self.processes == 1:
      return [value]
    name = self._next('all')
    self._tell(f'{name}/{self.process}', value)
    return [self._heard(f'{name}/{i}') for i in range(self.processes)]

  def begin(self) -> None:
    """Begins the rounds of a run: what asked an earlier one to end is not heard."""
    self._began = self._said

  def asked(self, signal: list[Any] | None) -> list[Any] | None:
    """Returns, on process 0, what has asked to end: on this process, or some time ago on another.

    Args:
      signal: what has asked on this process, what JSON can hold; None: nothing has.
    """
    if self.processes == 1:
      return signal
    name = f'{self._own}/asked/{self._began}'
    if not self.leads:
      if signal is not None:
        _client().key_value_set(name, json.dumps(signal), allow_overwrite=True)
      return None
    if signal is not None:
      return signal
    try:
      told: list[Any] = json.loads(_client().key_value_try_get(name))
    except jax.errors.JaxRuntimeError:
      return None  # nobody has
    return told

  def together(self, make: Callable[[], T], facts: Callable[[T], dict[str, Any]]) -> T:
    """Returns what `make` gives, if it gives the same on all processes.

    Args:
      make: builds something on each process; it may raise `ValueError`.
      facts: what must be the same of it everywhere.

    Raises:
      ValueError: it was refused on some process, or differs; the message names process and
        difference.
    """
    if self.processes == 1:
      return make()
    made, said = None, {}
    try:
      made = make()
      said = facts(made)
    except ValueError as error:
      said = {'refused': str(error)}
    every = self.all(said)
    try:
      for i, other in enumerate(every):
        if 'refused' in other:
          words = other['refused']
          raise ValueError(words if said == other else f'process {i}: {words}')
      meeting.check_same(every)
    except ValueError:
      self.agreed_refusal = True
      raise
    assert made is not None
    return made

  def root(self, root: np.ndarray) -> np.ndarray:
    """Returns the secret root of process 0, uint32 [2], which goes over the cluster's channel.

    It is deleted there as soon as every process has it.
    """
    if self.processes == 1:
      return root
    name = self._next('root')
    if self.leads:
      self._tell(name, root.tolist())
    told = np.array(self._heard(name), np.uint32)
    self.all(None)
    if self.leads:
      _client().key_value_delete(name)
    return told

  def refuse(self, error: BaseException) -> None:
    """Ends what the processes do together, because of an error on this one.

    Process 0 tells the others, who raise it where they wait. What all have refused, or raise by
    themselves, they know. Afterwards names are new on all, so that another run may follow.
    """
    if self.processes == 1:
      return
    if self._told_refusal:
      self._told_refusal = False  # names are new since it was heard
      return
    if self.leads and not self.agreed_refusal:
      words = {'words': str(error), 'bad': isinstance(error, ValueError)}
      with contextlib.suppress(Exception):  # the channel may be what is broken
        self._tell(f'{self._own}/refused', words)
    self.agreed_refusal = False
    self._begin_anew()

  def leave(self, code: int) -> None:
    """Ends this process, if the cluster was begun here: others first, then process 0.

    By `os._exit`: jax would wait for all processes to end, and abort where one has ended before.
    The others wait for process 0, which may be writing a report: who ends early counts as dead.
    Then process 0 waits for them: with it goes the channel, and jax aborts who still listens.
    """
    if not self.begun:
      return
    sys.stdout.flush()
    sys.stderr.flush()
    if self.processes > 1 and code == 0:
      name = 'fedjax_mem/left'
      try:
        if self.leads:
          self._tell(f'{name}/0', True)
          for i in range(1, self.processes):
            _client().blocking_key_value_get(f'{name}/{i}', 30_000)
        else:
          _client().blocking_key_value_get(f'{name}/0', _LONG)
          self._tell(f'{name}/{self.process}', True)
      except Exception as error:  # its own work is done
        print(f'fedjax-mem: warning: {error}', file=sys.stderr)
    self.at('done')
    os._exit(code)


_current = Cluster()


def current() -> Cluster:
  """Returns the cluster of this process; alone if there is none."""
  return _current


def join(devices: int | str, facts: dict[str, Any], detect: bool = False) -> Cluster:
  """Returns the cluster that this process is part of, which begins here if it has not yet.

  That of `fedjax-mem launch` is in the environment; `detect` finds that of Slurm, Open MPI, a TPU
  pod or GKE by jax; a script may have begun one by `jax.distributed.initialize` itself.

  Args:
    devices: as `execution.devices`, those of all processes together.
    facts: what must be the same everywhere, such as the hash of the configuration.
    detect: whether to look for a cluster that has started this process.

  Raises:
    ValueError: processes that differ or do not come, devices that do not divide, no cluster.
  """
  global _current
  if _current.processes > 1:
    return _current
  part = os.environ.pop(CLUSTER, None)
  if jax.distributed.is_initialized():
    _current = Cluster(jax.process_index(), jax.process_count())
  elif part is not None:
    _current = _begin(json.loads(part), devices, facts)
  elif detect:
    _current = _begin(meeting.detected(), devices, facts)
  return _current


def _begin(part: dict[str, Any], devices: int | str, facts: dict[str, Any]) -> Cluster:
  """Returns a cluster whose processes have met and agree, with jax started in it."""
  process, processes = part['process'], part['processes']
  status = Status(part['status']) if part.get('status') else None
  made = Cluster(process, processes, status, begun=True)
  each = devices_of_each(part.get('devices'), devices, processes, part.get('asked', False))
  wait = _wait()
  versions = {name: importlib.metadata.version(name) for name in ('jax', 'jaxlib')}
  meeting.meet(
    part['coordinator'],
    process,
    processes,
    {'fedjax_mem': __version__, **versions, **facts, 'devices of a process': each},
    wait,
  )
  if each is not None:
    jax.config.update('jax_num_cpu_devices', each)
  if processes == 1:
    return made
  jax.distributed.initialize(
    part['coordinator'],
    processes,
    process,
    part.get('local'),
    initialization_timeout=wait,
    heartbeat_timeout_seconds=_HEARTBEAT,
    shutdown_timeout_seconds=_HEARTBEAT,
    coordinator_bind_address=meeting.bound(part['coordinator']),
  )
  return made


def _wait() -> int:
  """Returns the seconds to wait for other processes."""
  said = os.environ.get(WAIT, str(_WAIT))
  try:
    return validate.integer(**{WAIT: int(said)})
  except ValueError as error:
    raise ValueError(f'{WAIT} must be a number of seconds >= 1, got {said!r}.') from error


def devices_of_each(
  each: int | None, devices: int | str, processes: int, asked: bool = False
) -> int | None:
  """Returns the host devices of one process, of a CPU; None: as many as there are.

  Args:
    each: those of a launched process.
    devices: as `execution.devices`.
    processes: how many there are.
    asked: whether somebody has asked for `each`.

  Raises:
    ValueError: devices that the processes do not divide, or other ones than asked for.
  """
  if devices == 'auto':
    return each
  if int(devices) % processes:
    fit = [p for p in range(1, int(devices) + 1) if int(devices) % p == 0]
    raise ValueError(
      f'execution.devices must be a multiple of the {processes} processes, got {devices}: take '
      f'{", ".join(map(str, fit))} processes, or other devices.'
    )
  if asked and each is not None and each * processes != int(devices):
    raise ValueError(
      f'--devices must be {int(devices) // processes}, as the run has {devices} devices for '
      f'{processes} processes (execution.devices), got {each}: leave --devices out.'
    )
  return int(devices) // processes


def _client() -> Any:
  """Returns the client of the channel, which jax keeps among its own."""
  from jax._src import distributed

  return distributed.global_state.client
