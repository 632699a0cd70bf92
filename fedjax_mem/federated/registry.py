"""The clients of a server: their enrolled keys, and their numbers in the order of arrival."""

from collections.abc import Callable
from typing import Any

from fedjax_mem.core import shapes
from fedjax_mem.federated import identity
from fedjax_mem.federated.client import FederatedClient
from fedjax_mem.federated.config import ServerConfig


class Registry:
  """The clients of one server.

  Args:
    config: config of the server.

  Attributes:
    registered: client id -> client that `run_round` may select.
    members: client id -> admitted client, registered now or not, in the order of admission.
  """

  def __init__(self, config: ServerConfig):
    self._config = config
    self._keys = identity.Register()
    self.registered: dict[str, FederatedClient] = {}
    self.members: dict[str, FederatedClient] = {}

  def enrol(self, client_id: str, public_key: bytes) -> None:
    """Enrols a client by its Ed25519 public key.

    Raises:
      ValueError: the key is not of 32 bytes, or the id has another key already.
    """
    self._keys.enrol(client_id, public_key)

  def remove(self, client_id: str) -> None:
    """Removes a client from those that `run_round` selects; its key stays enrolled.

    Raises:
      ValueError: there is no such client.
    """
    if client_id not in self.registered:
      raise ValueError(f'client_id must be registered, got {client_id!r}.')
    del self.registered[client_id]

  def admit(self, client: FederatedClient, params: Callable[[], Any]) -> None:
    """Enrols a client object and gives it a number.

    Args:
      client: the client.
      params: function that returns the server's parameters; it may make them for this client.

    Raises:
      ValueError: the id has another key, the model differs from the server's, the key is not
        enrolled though it has to be, or the client has privacy and the selection looks at reports.
    """
    name, selection = client.client_id, self._config.selection_strategy
    if name not in self._keys and self._config.require_enrolled:
      raise ValueError(
        f'client_id must be enrolled beforehand, got {name!r}: enrol(client_id, public_key).'
      )
    if not shapes.same(params(), client.model.params):
      raise ValueError(f'client {name!r} must have a model like the global one, got another.')
    if client.privacy is not None and selection != 'random':
      raise ValueError(
        f"selection_strategy must be 'random' for clients with privacy, got {selection!r}, which "
        'looks at what they report.'
      )
    self._keys.enrol(name, client.public_key)
    self.members[name] = client

  def number(self, client: FederatedClient) -> int:
    """Returns the number of a client: its position in the order of admission, from 0."""
    return list(self.members).index(client.client_id)

  def check(self, update: Any) -> None:
    """Raises `identity.Unauthentic` unless an enrolled client signed an update."""
    self._keys.check(update.client_id, update.statement, update.signature)

  @property
  def weighs_alike(self) -> bool:
    """Whether all clients have equal weights: local noise is scaled for messages of one weight."""
    return any(x.config.privacy_config is not None for x in self.members.values())
