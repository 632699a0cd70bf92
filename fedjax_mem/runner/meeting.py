"""How processes of a cluster meet before jax starts: who is there, and whether all are alike."""

import contextlib
import json
import socket
import time
from typing import Any

_PAUSE = 0.2  # seconds between two tries to reach process 0
_LINE = 1 << 20  # bytes, the longest message
_GREETING = 5.0  # seconds in which who connects has to say who it is


def meet(
  coordinator: str, process: int, processes: int, facts: dict[str, Any], wait: float
) -> None:
  """Returns when all processes are there and have the same facts.

  Process 0 listens at the coordinator's address, which jax uses after this.

  Args:
    coordinator: 'host:port' of process 0.
    process: number of this process.
    processes: how many there are.
    facts: what must be the same on all of them, what JSON can hold.
    wait: seconds to wait for the others.

  Raises:
    ValueError: the port is taken, a process does not come, or one differs; the message names the
      process and the difference, on every process that is there.
  """
  if processes == 1:
    return
  said = json.loads(json.dumps(facts))
  if process == 0:
    _lead(coordinator, processes, said, wait)
  else:
    _follow(coordinator, process, processes, said, wait)


def check_same(every: list[dict[str, Any]]) -> None:
  """Raises `ValueError` unless all processes have the facts of process 0."""
  for i, other in enumerate(every):
    for name in [*every[0], *(x for x in other if x not in every[0])]:
      a, b = every[0].get(name), other.get(name)
      if a != b:
        raise ValueError(
          f'all processes must have the same {name}, got {b!r} on process {i} and {a!r} on '
          'process 0.'
        )


def bound(coordinator: str) -> str | None:
  """Returns where process 0 listens: a cluster of this machine alone on its loopback interface.

  None: on all interfaces, as others have to reach it.
  """
  return coordinator if coordinator.startswith('127.0.0.1:') else None


def _lead(coordinator: str, processes: int, facts: dict[str, Any], wait: float) -> None:
  came: dict[int, tuple[dict[str, Any], socket.socket]] = {}
  host, port = coordinator.rsplit(':', 1)
  try:
    listener = socket.create_server((host if bound(coordinator) else '', int(port)))
  except OSError as error:
    raise ValueError(
      f'the port {port} of the coordinator must be free, got {error}: choose another one.'
    ) from error
  with listener, contextlib.ExitStack() as held:
    ends = time.monotonic() + wait
    while len(came) < processes - 1:
      listener.settimeout(max(0.01, ends - time.monotonic()))
      try:
        link = held.enter_context(listener.accept()[0])
      except TimeoutError:
        break
      said = _read(link, min(_GREETING, max(0.01, ends - time.monotonic())))
      known = said is not None and said.get('process') in range(1, processes)
      if said is not None and known and isinstance(said.get('facts'), dict):
        came[said['process']] = said['facts'], link
    refused = _refusal(came, processes, facts, wait)
    for _, link in came.values():
      with contextlib.suppress(OSError):
        link.sendall(json.dumps({'refused': refused}).encode() + b'\n')
  if refused is not None:
    raise ValueError(refused)


def _refusal(
  came: dict[int, tuple[dict[str, Any], socket.socket]],
  processes: int,
  facts: dict[str, Any],
  wait: float,
) -> str | None:
  """Returns why the cluster cannot begin, or None."""
  missing = [i for i in range(1, processes) if i not in came]
  if missing:
    who = ', '.join(map(str, missing))
    return (
      f'all {processes} processes must come within {wait:g} s, got none for the number(s) {who}: '
      'see whether they have started, and FEDJAX_MEM_WAIT for a longer time.'
    )
  try:
    check_same([facts, *(came[i][0] for i in range(1, processes))])
  except ValueError as error:
    return str(error)
  return None


def _follow(
  coordinator: str, process: int, processes: int, facts: dict[str, Any], wait: float
) -> None:
  host, port = coordinator.rsplit(':', 1)
  ends = time.monotonic() + wait
  message = json.dumps({'process': process, 'facts': facts}).encode() + b'\n'
  while True:
    left = ends - time.monotonic()
    if left <= 0:
      raise ValueError(
        f'process 0 of {processes} must answer at {coordinator} within {wait:g} s, got no answer '
        f'on process {process}.'
      )
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), left) as link:
      link.sendall(message)
      told = _read(link, left + 5)
      if told is not None:
        if told['refused'] is not None:
          raise ValueError(told['refused'])
        return
    time.sleep(_PAUSE)


def _read(link: socket.socket, seconds: float) -> dict[str, Any] | None:
  """Returns the message of one line, or None if none comes."""
  link.settimeout(seconds)
  with contextlib.suppress(OSError, ValueError), link.makefile('rb') as lines:
    told = json.loads(lines.readline(_LINE))
    if isinstance(told, dict):
      return told
  return None


def detected() -> dict[str, Any]:
  """Returns this process's part of the cluster that has started it, as jax finds it.

  Raises:
    ValueError: jax finds none.
  """
  from jax._src import clusters

  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 60)
  coordinator, processes, process, local = found
  if coordinator is None or processes is None or process is None:
    raise ValueError(
      '--distributed must be used in a cluster that jax knows (Slurm, Open MPI, a TPU pod, GKE), '
      'got none: start the processes by it, or use `fedjax-mem launch`.'
    )
  part = {'coordinator': coordinator, 'processes': processes, 'process': process}
  return part if local is None else {**part, 'local': list(local)}
