"""`SecureAggregator`: the protocol behind two calls, for pytrees of float arrays."""

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
from fedjax_mem.secagg.server import Server
from fedjax_mem.secagg.session import Session

# Of weight * value, and of weights; of 64 bits there are 2 ** -42 * n left for the step.
_LIMIT = 2.0**20


class EncryptedUpdate(NamedTuple):
  """A masked update, as the server receives it.

  Attributes:
    slot: the client's number in the session.
    message: its bytes; on their own they are uniform.
  """

  slot: int
  message: bytes

  def __repr__(self) -> str:
    """Says whose it is and how long."""
    return f'EncryptedUpdate(slot={self.slot}, bytes={len(self.message)})'


class SecureAggregator:
  """Weighted averages of updates of which the server sees none: secure aggregation in two calls.

  `encrypt` masks one client's update, `secure_aggregate` returns the average of those it is given:
  sum(weight * update) / sum(weight), by default the plain mean. It is FedAvg's average when weights
  are numbers of examples; update, weight and all are masked.

  A front of `secagg.protocol` in semi-honest mode, with all parties in this one process: it
  shows and tests the protocol. Where clients are machines of their own, give each a
  `protocol.Client`; only then does the server not have the secrets.

  A round begins with the first `encrypt`: all `num_clients` then exchange keys and shares. Up to
  num_clients - threshold of them may be missing at `secure_aggregate`. Keys serve one round; after
  the average is out, the next `encrypt` begins a new one and old updates are refused.

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
      num_clients: n, those that may take part in a round, at least 2.
      threshold: t, the least that must be there; above n / 2.
    """
    self.num_clients = validate.integer(at_least=2, num_clients=num_clients)
    self.threshold = validate.integer(at_most=num_clients, threshold=threshold)
    self._session(1)  # refuses what the protocol would
    self._round: _Round | None = None

  def __repr__(self) -> str:
    """Says the two numbers; no secret."""
    return f'SecureAggregator(num_clients={self.num_clients}, threshold={self.threshold})'

  def encrypt(self, update: Any, client_id: Hashable, weight: float = 1.0) -> EncryptedUpdate:
    """Returns a client's update under its masks.

    Args:
      update: a pytree of float arrays, the same structure and shapes for all clients.
      client_id: any hashable value, such as a name or a number; once a round.
      weight: of this update in the average, such as its number of examples; above 0.

    Raises:
      ValueError: the update is of another structure or shape, not of floats, not finite or too
        large; or the weight is out of range.
      ProtocolError: the client has encrypted in this round before (its masks hide one update
        only), or there are `num_clients` others.
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
      BelowThreshold: fewer than `threshold` are given; nothing is released, and the round goes on.
      ProtocolError: an update is given twice, was altered, or is of another round; nothing is
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
    self._round = None  # clients answer one set of survivors only
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
      num_clients=self.num_clients,
      threshold=self.threshold,
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
  """One round of the aggregator: its parties, and the form of the updates."""

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
    """Returns the server as it was before masked values: a refused list leaves no trace."""
    return self._server.copy()

  def tree(self, flat: np.ndarray) -> Any:
    """Returns the flat values as a tree of the updates' shapes, dtypes and kind of arrays."""
    ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])[:-1]
    leaves = []
    for part, shape, (dtype, on_device) in zip(
      np.split(flat, ends), self.shapes, self._like, strict=True
    ):
      leaf = part.reshape(shape).astype(dtype)
      leaves.append(jnp.asarray(leaf) if on_device else leaf)
    return jax.tree.unflatten(self.structure, leaves)
