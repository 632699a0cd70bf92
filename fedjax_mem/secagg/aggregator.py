"""`SecureAggregator`: the protocol in two calls, for pytrees of float arrays."""

from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.secagg import primitives
from fedjax_mem.secagg.client import Client
from fedjax_mem.secagg.errors import BelowThreshold, ProtocolError
from fedjax_mem.secagg.fixed_point import FixedPoint
from fedjax_mem.secagg.graph import Degree
from fedjax_mem.secagg.server import Server
from fedjax_mem.secagg.session import Session

# Largest |weight * value| and weight. With 64 bits the step is then at most 2 ** -42 * n.
_LIMIT = 2.0**20


class EncryptedUpdate(NamedTuple):
  """A masked update, as the server receives it.

  Attributes:
    slot: number of the client in the session.
    message: the masked bytes; without the other clients' they are uniform.
  """

  slot: int
  message: bytes

  def __repr__(self) -> str:
    """Shows the client's number and the length."""
    return f'EncryptedUpdate(slot={self.slot}, bytes={len(self.message)})'


class SecureAggregator:
  """Secure aggregation in two calls: weighted averages of updates that stay hidden from the server.

  `encrypt` masks one client's update and its weight. `secure_aggregate` returns the average of the
  masked updates it is given, sum(weight * update) / sum(weight): by default the plain mean, and
  FedAvg's average if weights are numbers of examples.

  The class runs `secagg.protocol` in semi-honest mode with all parties in one process, to show and
  test the protocol. If clients are separate machines, give each a `protocol.Client`; only then are
  the secrets hidden from the server.

  A round begins with the first `encrypt`: all `num_clients` then exchange keys and shares. Up to
  num_clients - threshold of them may be missing at `secure_aggregate`. Keys are used for one round:
  after it, the next `encrypt` begins a new one, and old updates are refused.

  |weight * value| and weights may be 2 ** 20 at most; larger and non-finite ones are refused. Both
  are rounded to a public step of at most num_clients * 2 ** -42; their sums are exact.

  >>> aggregator = SecureAggregator(num_clients=3, threshold=2)
  >>> sent = [aggregator.encrypt({'w': np.full(2, i, np.float32)}, f'c{i}') for i in (1, 2)]
  >>> aggregator.secure_aggregate(sent)['w'].tolist()
  [1.5, 1.5]

  Raises:
    ValueError: the threshold is not above half of the clients, or above their number.
  """

  def __init__(self, num_clients: int, threshold: int):
    """Makes the aggregator.

    Args:
      num_clients: n, the largest number of clients in a round, at least 2.
      threshold: t, the least number of updates for an average; above n / 2, at most n.
    """
    self.num_clients = validate.integer(at_least=2, num_clients=num_clients)
    self.threshold = validate.integer(at_most=num_clients, threshold=threshold)
    self._session(1)  # raises what the protocol would raise
    self._round: _Round | None = None

  def __repr__(self) -> str:
    """Shows the two numbers, and no secret."""
    return f'SecureAggregator(num_clients={self.num_clients}, threshold={self.threshold})'

  def encrypt(self, update: Any, client_id: Hashable, weight: float = 1.0) -> EncryptedUpdate:
    """Returns a client's update under its masks.

    Args:
      update: a pytree of float arrays, the same structure and shapes for all clients.
      client_id: any hashable value, such as a name or a number; distinct in a round.
      weight: weight of the update in the average, such as the number of examples; above 0.

    Raises:
      ValueError: the update has another structure or shape than the others, or is not of floats,
        not finite or too large; or the weight is out of range.
      ProtocolError: the client has encrypted in this round before (its masks hide one update only),
        or `num_clients` others have.
    """
    validate.positive(weight=weight)
    leaves, structure = jax.tree.flatten(update)
    arrays = [np.asarray(leaf) for leaf in leaves]
    if not arrays or any(not jnp.issubdtype(a.dtype, jnp.floating) for a in arrays):
      got = [a.dtype.name for a in arrays]
      raise ValueError(f'update must be a pytree of float arrays, got dtypes {got!r}.')
    shapes = [a.shape for a in arrays]
    current = self._round
    if current is None:
      current = self._begin(leaves, structure)
    if (structure, shapes) != (current.structure, current.shapes):
      raise ValueError(
        f'update must have the structure and shapes of the first one in this round, '
        f'{current.structure} and {current.shapes}, got {structure} and {shapes}.'
      )
    if client_id in current.slots:
      raise ProtocolError(f'client_id must be new in this round, got {client_id!r} again.')
    slot = len(current.slots)
    if slot == self.num_clients:
      raise ProtocolError(f'client_id must be one of {self.num_clients}, got {client_id!r} more.')
    flat = np.concatenate([a.astype(np.float64).ravel() for a in arrays])
    values = current.code.encode(flat, weight)
    self._round = current
    current.slots[client_id] = slot
    return EncryptedUpdate(slot, current.clients[slot].mask(current.boxes[slot], values))

  def secure_aggregate(self, encrypted_updates: Iterable[EncryptedUpdate]) -> Any:
    """Returns the weighted average of the updates, a pytree like each of them.

    Raises:
      BelowThreshold: fewer than `threshold` updates; nothing is released, and the round goes on.
      ProtocolError: an update is given twice, was altered, or belongs to another round; nothing is
        released, and the round goes on.
    """
    given = list(encrypted_updates)
    if len(given) < self.threshold or self._round is None:
      raise BelowThreshold(
        f'encrypted_updates must be {self.threshold} or more of this round, got {len(given)}: '
        'nothing is released.'
      )
    current = self._round
    server = current.fresh_server()
    for slot, message in given:
      server.receive(slot, message)
    self._round = None  # clients answer a request for one set of survivors only
    requests = server.close_round()
    for slot, request in requests.items():
      server.receive(slot, current.clients[slot].unmask(request))
    server.close_round()
    total, weight, _ = current.code.decode(server.total())
    return current.tree(total / weight)

  def _session(self, size: int) -> Session:
    code = self._code(size - 1)
    return Session(
      name=primitives.random_bytes(32),
      degree=Degree(self.num_clients, None, self.threshold),
      size=size,
      bound=code.bound,
      bits=code.bits,
    )

  def _code(self, update: int) -> FixedPoint:
    return FixedPoint(
      num_clients=self.num_clients,
      update=update,
      update_limit=_LIMIT,
      weight_limit=_LIMIT,
      bits=64,
    )

  def _begin(self, leaves: list[Any], structure: Any) -> '_Round':
    """Returns a round in which all clients have exchanged keys and shares."""
    code = self._code(sum(np.size(leaf) for leaf in leaves))
    session = self._session(code.size)
    clients = [Client(session, i) for i in range(self.num_clients)]
    server = Server(session)
    for client in clients:
      server.receive(client.id, client.advertise_keys())
    keys = server.close_round()
    shares = [client.share_keys(keys[client.id]) for client in clients]
    for client, message in zip(clients, shares, strict=True):
      server.receive(client.id, message)
    return _Round(code, session, clients, server, server.close_round(), leaves, structure)


class _Round:
  """One round of the aggregator: its parties, and the structure and shapes of the updates."""

  def __init__(
    self,
    code: FixedPoint,
    session: Session,
    clients: list[Client],
    server: Server,
    boxes: dict[int, bytes],
    leaves: list[Any],
    structure: Any,
  ):
    self.code = code
    self.session = session
    self.clients = clients
    self.boxes = boxes
    self.slots: dict[Hashable, int] = {}
    self.structure = structure
    self.shapes = [np.shape(leaf) for leaf in leaves]
    self._like = [(np.asarray(x).dtype, isinstance(x, jax.Array)) for x in leaves]
    self._server = server

  def fresh_server(self) -> Server:
    """Returns a copy of the server before any masked values: a refused call leaves no trace."""
    return self._server.copy()

  def tree(self, flat: np.ndarray) -> Any:
    """Returns flat values as a tree with the updates' shapes, dtypes and array types."""
    ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
    leaves = []
    for part, shape, (dtype, on_device) in zip(
      np.split(flat, ends), self.shapes, self._like, strict=True
    ):
      leaf = part.reshape(shape).astype(dtype)
      leaves.append(jnp.asarray(leaf) if on_device else leaf)
    return jax.tree.unflatten(self.structure, leaves)
