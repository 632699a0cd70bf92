"""Who may take part: enrolled keys, and the clients of a server in the order they came."""

from collections.abc import Callable
from typing import Any

from fedjax_mem.core import tree
from fedjax_mem.federated import identity
from fedjax_mem.federated.client import FederatedClient
from fedjax_mem.federated.config import ServerConfig


class Registry:
  """The clients of one server.

  Args:
    config: of the server.

  Attributes:
    registered: client id -> client that rounds select from.
    members: client id -> client that has taken part or may, in the order they came.
  """

  def __init__(self, config: ServerConfig):
    self._config = config
    self._keys = identity.Register()
    self.registered: dict[str, FederatedClient] = {}
    self.members: dict[str, FederatedClient] = {}

  def enrol(self, client_id: str, public_key: bytes) -> None:
    """Lets a client in by its Ed25519 public key.

    Raises:
      ValueError: no such key, or the id has another key already.
    """
    self._keys.enrol(client_id, public_key)

  def remove(self, client_id: str) -> None:
    """Selects no more from a client; its key stays enrolled.

    Raises:
      ValueError: there is no such client.
    """
    if client_id not in self.registered:
      raise ValueError(f'client_id must be registered, got {client_id!r}.')
    del self.registered[client_id]

  def admit(self, client: FederatedClient, params: Callable[[], Any]) -> None:
    """Enrols a client that is in this process and gives it a number.

    Args:
      client: the client.
      params: -> those of the server, which may need the client to exist.

    Raises:
      ValueError: its id has another key, its model is another, only enrolled keys are let in, or it
        has privacy and the selection looks at what clients report.
    """
    name, selection = client.client_id, self._config.selection_strategy
    if name not in self._keys and self._config.require_enrolled:
      raise ValueError(
        f'client_id must be enrolled beforehand, got {name!r}: enrol(client_id, public_key).'
      )
    if not tree.same(params(), client.model.params):
      raise ValueError(f'client {name!r} must have a model like the global one, got another.')
    if client.privacy is not None and selection != 'random':
      raise ValueError(
        f"selection_strategy must be 'random' for clients with privacy, got {selection!r}, which "
        'looks at what they report.'
      )
    self._keys.enrol(name, client.public_key)
    self.members[name] = client

  def number(self, client: FederatedClient) -> int:
    """Returns the place of a client among all that came."""
    return list(self.members).index(client.client_id)

  def check(self, update: Any) -> None:
    """Raises `identity.Unauthentic` unless an enrolled client signed an update."""
    self._keys.check(update.client_id, update.statement, update.signature)

  @property
  def weighs_alike(self) -> bool:
    """Whether all clients count the same: some noise of theirs is for messages of one weight."""
    return any(x.config.privacy_config is not None for x in self.members.values())
