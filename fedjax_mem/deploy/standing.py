"""How a deployment stands, as its server sees it."""

import json
import pathlib
from typing import Any

from fedjax_mem.deploy import enrolment, processes
from fedjax_mem.deploy.jobs import Driver
from fedjax_mem.deploy.kit import Kit


def status(kit: Kit) -> list[str]:
  """Returns lines that say whether the server runs, its round, and which clients are there.

  Raises:
    ValueError: the kit is not the server's.
  """
  enrolment.needs_server(kit)
  place, revoked = processes.place(kit.work), enrolment.revoked(kit)
  lines = [f'server: {"not running" if place is None else "running"}, {kit.host}:{kit.port}']
  connected: frozenset[str] | None = None
  if place is not None:
    try:
      with Driver(kit, kit.work / 'status', timeout=5.0) as driver:
        running, connected = driver.jobs(), driver.clients()
      lines.append(f'job: {", ".join(running) or "none"}')
    except ConnectionError as error:
      lines.append(f'job: not known ({error})')
    lines.append(f'round: {_last_round(place)}')
  for i, name in enumerate(kit.clients):
    if name in revoked:
      how = f'revoked at {revoked[name]}'
    elif connected is None:
      how = 'not known'
    else:
      how = 'connected' if name in connected else 'not connected'
    lines.append(f'client {i} {name}: {how}')
  return lines


def revoke(kit: Kit, name: str) -> str:
  """Revokes a client from the next round on; returns a line that says what was done.

  Raises:
    ValueError: the kit is not the server's, or there is no such client.
  """
  enrolment.revoke(kit, name)
  done = f'{name} is revoked from the next round on'
  if processes.place(kit.work) is None:
    return f'{done}; the server does not run, and will not admit it'
  try:
    with Driver(kit, kit.work / 'status', timeout=5.0) as driver:
      driver.disable(name)
  except ConnectionError as error:
    return f'{done}; its connection stays until the server is started again ({error})'
  return f'{done}; the server admits it no more'


def _last_round(place: dict[str, Any]) -> str:
  """Returns the last round of the run's records."""
  try:
    with pathlib.Path(place['run'], 'metrics.jsonl').open('rb') as file:
      file.seek(max(0, file.seek(0, 2) - 65536))
      last = file.read().splitlines()[-1]
    return str(json.loads(last)['round'])
  except (KeyError, TypeError, OSError, ValueError, IndexError):
    return 'none yet'
