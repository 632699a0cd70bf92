"""A kit: the certificates, keys and addresses of one party of a deployment."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedjax_mem.deploy import certificates, engine

Role = Literal['server', 'client']


@dataclasses.dataclass(frozen=True)
class Kit:
  """The kit of the server or of one client.

  Attributes:
    path: its folder.
    role: 'server' or 'client'.
    name: 'server', or the client's name.
    clients: names of all clients, in the order of their ids.
    host: name or address of the server.
    port: TCP port of the server for clients.
    admin_port: TCP port of the server for its driver.
    version: version of the package that made the kit.
    sign: the party's own private key of signatures (Ed25519).
    public: public keys, 32 bytes each, of all clients and of 'server', by name.
  """

  path: pathlib.Path
  role: Role
  name: str
  clients: tuple[str, ...]
  host: str
  port: int
  admin_port: int
  version: str
  sign: Ed25519PrivateKey
  public: Mapping[str, bytes]

  @classmethod
  def open(cls, path: str | pathlib.Path, role: Role) -> 'Kit':
    """Reads a kit.

    Args:
      path: its folder.
      role: the role that it must have.

    Raises:
      ValueError: it is not a kit, not of this role, or a file of it is missing or not readable.
    """
    path = pathlib.Path(path)
    facts = _json(path, 'kit.json')
    if facts.get('role') != role:
      raise ValueError(
        f'kit must be that of a {role}, got the kit of {facts.get("role")} {facts.get("name")!r} '
        f'in {str(path)!r}.'
      )
    try:
      sign = serialization.load_pem_private_key((path / 'sign.key').read_bytes(), None)
      public = {name: bytes.fromhex(key) for name, key in _json(path, 'keys.json').items()}
      names = tuple(facts['clients'])
      rest = (facts['host'], int(facts['port']), int(facts['admin_port']), facts['version'])
    except (OSError, ValueError, KeyError, TypeError) as error:
      words = f'{type(error).__name__}: {error}'
      raise ValueError(f'kit {str(path)!r} must be complete, got {words}.') from error
    if not isinstance(sign, Ed25519PrivateKey) or set(public) != {'server', *names}:
      raise ValueError(f'kit {str(path)!r} must hold one key for each party; take it afresh.')
    return cls(path, role, facts['name'], names, *rest, sign=sign, public=public)

  @property
  def startup(self) -> pathlib.Path:
    """The folder of certificates and addresses that the engine reads."""
    return self.path / 'startup'

  @property
  def work(self) -> pathlib.Path:
    """The folder of what this machine writes: the engine's files and log, and the place file."""
    return self.path / 'work'

  @property
  def taken(self) -> pathlib.Path:
    """The id of the run in which the client's command that runs takes part."""
    return self.work / 'taken.json'

  @property
  def standing(self) -> pathlib.Path:
    """The last round that the client has answered."""
    return self.work / 'standing.json'

  def check(self) -> None:
    """Checks certificates and private keys; to be called before the engine starts.

    The engine itself waits for ever, and says nothing, where one of them does not fit.

    Raises:
      ValueError: a private key is readable by others or does not fit its certificate or the public
        keys, or a certificate is not of this CA, not of this name, or not valid now. One line.
    """
    certificates.private(self.path / 'sign.key')
    if self.sign.public_key().public_bytes_raw() != self.public[self.name]:
      raise ValueError(
        f'sign.key of {str(self.path)!r} must fit keys.json; {certificates.TAKE_AFRESH}'
      )
    own = 'server' if self.role == 'server' else 'client'
    subject = self.host if self.role == 'server' else self.name
    certificates.check(self.startup, own, subject)
    if self.role == 'server':
      certificates.check(self.path / 'driver' / 'startup', 'client', engine.DRIVER)


def _json(path: pathlib.Path, name: str) -> dict[str, Any]:
  try:
    content = json.loads((path / name).read_text())
  except (OSError, ValueError) as error:
    raise ValueError(
      f'kit must be a folder that `fedjax-mem deploy keys` made, got {str(path)!r} '
      f'({name}: {error}).'
    ) from error
  if not isinstance(content, dict):
    raise ValueError(f'{path / name} must be a JSON object; take the kit afresh.')
  return content
