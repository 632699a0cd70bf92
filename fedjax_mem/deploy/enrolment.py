"""Which clients of a deployment are revoked: a file of the server's kit."""

import datetime
import json
from typing import TYPE_CHECKING

from fedjax_mem.deploy import engine

if TYPE_CHECKING:
  from fedjax_mem.deploy.kit import Kit

_FILE = 'revoked.json'


def revoked(kit: 'Kit') -> dict[str, str]:
  """Returns the revoked clients and when each was revoked (UTC, ISO 8601).

  The server reads it before each round, so that a client is left out from the next one on.

  Raises:
    ValueError: the file is not readable; nobody may be let in then.
  """
  path = kit.path / _FILE
  if not path.exists():
    return {}
  try:
    content = json.loads(path.read_text())
    return {str(name): str(when) for name, when in content.items()}
  except (OSError, ValueError, AttributeError) as error:
    raise ValueError(f'{path} must be a JSON object of names and times, got {error}.') from error


def revoke(kit: 'Kit', name: str) -> None:
  """Notes a client as revoked, for good.

  Args:
    kit: the server's kit.
    name: the client's name.

  Raises:
    ValueError: the kit is not the server's, or there is no such client.
  """
  needs_server(kit)
  if name not in kit.clients:
    raise ValueError(f'NAME must be one of the clients {", ".join(kit.clients)}, got {name!r}.')
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
  engine.write_json(kit.path / _FILE, {name: now} | revoked(kit))


def needs_server(kit: 'Kit') -> None:
  """Raises `ValueError` unless the kit is the server's."""
  if kit.role != 'server':
    raise ValueError(
      f'kit must be that of the server, got the kit of client {kit.name!r}; only the server may.'
    )
