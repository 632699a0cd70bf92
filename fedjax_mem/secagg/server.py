"""The server of the protocol: it forwards messages, adds masked values, and removes the masks."""

import copy
from collections.abc import Callable, Container
from typing import ClassVar

import numpy as np

from fedjax_mem.secagg import messages, primitives, shamir
from fedjax_mem.secagg.client import (
  pair_mask_key,
  seed_commitment,
  self_mask_key,
)
from fedjax_mem.secagg.errors import BelowThreshold, ProtocolError
from fedjax_mem.secagg.messages import SERVER, Kind
from fedjax_mem.secagg.session import Session

# (messages to the remaining clients, the next round)
Closed = tuple[dict[int, bytes], Kind | None]


class Server:
  """The server in one session.

  In each round call `receive` for each message, then `close_round`; after the last round `total`
  returns the sum. A refused message changes nothing. A round that closes with too few clients ends
  the session: nothing is released, and later calls are refused. Memory is O(D): masked values are
  added as they come.
  """

  def __init__(self, session: Session):
    """Makes the server of a session."""
    self.session = session
    self.round: Kind | None = Kind.ADVERTISE
    self._bodies: dict[int, bytes] = {}
    self._signatures: dict[int, bytes] = {}
    self._keys: dict[int, bytes] = {}
    self._commitments: dict[int, bytes] = {}
    self._survivors: list[int] = []
    self._answering: list[int] = []
    self._sum = np.zeros(session.size, session.dtype)
    self._total: np.ndarray | None = None
    self._probe = primitives.Pair()  # agreement with it fails for keys of low order
    self._seen: set[bytes] = set()

  def __repr__(self) -> str:
    """Shows the round and the number of messages received, and no secret."""
    state = 'over' if self.round is None else self.round.name
    return f'Server(round={state}, received={len(self._bodies)})'

  def receive(self, sender: int, message: bytes) -> None:
    """Receives a client's message of this round.

    Args:
      sender: id of the client at the other end of the channel; a message with another sender is
        refused.
      message: its bytes.

    Raises:
      ProtocolError: the client is unknown or has dropped out; the message is of another round,
        session or sender, cut, altered or a second one; or its content is not allowed.
    """
    kind = self._open()
    if not isinstance(sender, int) or not 0 <= sender < self.session.num_clients:
      raise ProtocolError(
        f'sender must be one of the {self.session.num_clients} clients, got {sender!r}.'
      )
    body = messages.unpack(self.session, kind, sender, SERVER, message)
    if sender in self._bodies:
      raise ProtocolError(f'client {sender} must send one {kind.name} message, got another.')
    if sender not in self._expected(kind):
      raise ProtocolError(f'client {sender} must not have dropped out, got a {kind.name} message.')
    self._CHECKS[kind](self, sender, body)
    if kind == Kind.MASKED:
      self._sum += np.frombuffer(body, self.session.dtype)
      body = memoryview(b'')
    self._bodies[sender] = bytes(body)
    if self.session.active:
      self._signatures[sender] = message[-primitives.SIGNATURE_BYTES :]

  def close_round(self) -> dict[int, bytes]:
    """Ends the round, and returns client id -> message, for the remaining clients.

    After the last round there is no message, and `total` has the sum.

    Raises:
      BelowThreshold: too few clients are left; the session is over.
      ProtocolError: the shares do not restore the committed secrets; the session is over.
    """
    kind = self._open()
    self.round = None  # an error below ends the session
    present = sorted(self._bodies)
    needed = self.session.threshold
    if len(present) < needed:
      raise BelowThreshold(
        f'clients must be {needed} or more in round {kind.name}, got {len(present)}: '
        'nothing is released.'
      )
    out, after = self._CLOSES[kind](self, present)
    self._bodies, self._signatures = {}, {}
    self.round = after
    return out

  def copy(self) -> 'Server':
    """Returns an independent server in the same state."""
    other = copy.copy(self)
    for name in ('_bodies', '_signatures', '_seen'):
      setattr(other, name, copy.copy(getattr(self, name)))
    other._sum = self._sum.copy()
    return other

  @property
  def survivors(self) -> tuple[int, ...]:
    """Ids of the clients whose values are in the sum, ascending; empty before they are known."""
    return tuple(self._survivors)

  def total(self) -> np.ndarray:
    """Returns the exact sum of the survivors' integers, int64 [D].

    Raises:
      ProtocolError: the protocol is not finished, or it failed.
    """
    if self._total is None:
      raise ProtocolError('the protocol must be finished before there is a sum.')
    return self._total

  def _open(self) -> Kind:
    if self.round is None:
      raise ProtocolError('the session must not be over, got another call.')
    return self.round

  def _expected(self, kind: Kind) -> Container[int]:
    """Returns the ids of the clients that may send in a round."""
    return {
      Kind.ADVERTISE: range(self.session.num_clients),
      Kind.SHARES: self._keys,
      Kind.MASKED: self._commitments,
      Kind.CHECK: self._survivors,
      Kind.UNMASK: self._answering,
    }[kind]

  def _neighbours(self, client: int, among: Container[int]) -> list[int]:
    """Returns the neighbours of a client that are in `among`, ascending."""
    return [i for i in self.session.holders(client).tolist() if i != client and i in among]

  def _to(self, kind: Kind, bodies: dict[int, bytes]) -> dict[int, bytes]:
    """Returns client id -> message of a kind, from client id -> body."""
    return {i: messages.pack(self.session, kind, SERVER, i, x) for i, x in bodies.items()}

  def _check_keys(self, sender: int, body: memoryview) -> None:
    if len(body) != 2 * primitives.KEY_BYTES:
      raise ProtocolError(f'keys must be {2 * primitives.KEY_BYTES} bytes, got {len(body)}.')
    keys = [bytes(body[: primitives.KEY_BYTES]), bytes(body[primitives.KEY_BYTES :])]
    for key in keys:
      self._probe.agree(key, b'probe')
    if keys[0] == keys[1] or self._seen.intersection(keys):
      raise ProtocolError(f'public keys must be distinct, got one twice from client {sender}.')
    self._seen.update(keys)

  def _check_shares(self, sender: int, body: memoryview) -> None:
    boxes = messages.records(body[primitives.DIGEST_BYTES :], messages.BOX_RECORD)
    if len(body) < primitives.DIGEST_BYTES or boxes['id'].tolist() != self._neighbours(
      sender, self._keys
    ):
      raise ProtocolError(f'client {sender} must send a box for each of its neighbours, once.')

  def _check_masked(self, sender: int, body: memoryview) -> None:
    wanted = self.session.size * self.session.dtype.itemsize
    if len(body) != wanted:
      raise ProtocolError(f'values of client {sender} must be {wanted} bytes, got {len(body)}.')

  def _check_survivors(self, sender: int, body: memoryview) -> None:
    if bytes(body) != messages.id_list(self._survivors):
      raise ProtocolError(f'client {sender} must sign the survivors it was told, got others.')

  def _check_unmask(self, sender: int, body: memoryview) -> None:
    found = messages.records(body, messages.SHARE_RECORD)
    alive, gone = self._asked(sender)
    ids, secrets = alive + gone, [0] * len(alive) + [1] * len(gone)
    if found['id'].tolist() != ids or found['secret'].tolist() != secrets:
      raise ProtocolError(f'client {sender} must send the shares it was asked for, got others.')
    if (found['share'] >= shamir.PRIME).any():
      raise ProtocolError(f'shares of client {sender} must be in the field, got one out of range.')

  def _asked(self, client: int) -> tuple[list[int], list[int]]:
    """Returns the survivors and the dropped clients whose shares a client is asked for."""
    holds = [i for i in self.session.holders(client).tolist() if i in self._commitments]
    alive = set(self._survivors)
    return [i for i in holds if i in alive], [i for i in holds if i not in alive]

  def _close_keys(self, present: list[int]) -> Closed:
    self._keys = dict(self._bodies)
    parts = {i: np.array([i], messages.ID).tobytes() + self._bodies[i] for i in present}
    if self.session.active:
      parts = {i: part + self._signatures[i] for i, part in parts.items()}
    bodies = {i: b''.join(parts[j] for j in self._neighbours(i, parts)) for i in present}
    return self._to(Kind.KEYS, bodies), Kind.SHARES

  def _close_shares(self, present: list[int]) -> Closed:
    start = primitives.DIGEST_BYTES
    self._commitments = {i: self._bodies[i][:start] for i in present}
    inbox: dict[int, list[bytes]] = {i: [] for i in present}
    for sender in present:
      sent = messages.records(self._bodies[sender][start:], messages.BOX_RECORD).copy()
      receivers = sent['id'].tolist()
      sent['id'] = sender
      for receiver, record in zip(receivers, sent, strict=True):
        if receiver in inbox:
          inbox[receiver].append(record.tobytes())
    return self._to(Kind.BOXES, {i: b''.join(x) for i, x in inbox.items()}), Kind.MASKED

  def _close_masked(self, present: list[int]) -> Closed:
    self._survivors = present
    if not self.session.active:
      return self._request({}), Kind.UNMASK
    body = messages.id_list(present)
    return self._to(Kind.SURVIVORS, {i: body for i in present}), Kind.CHECK

  def _close_check(self, present: list[int]) -> Closed:
    return self._request({i: self._signatures[i] for i in present}), Kind.UNMASK

  def _request(self, signatures: dict[int, bytes]) -> dict[int, bytes]:
    signed = b''.join(messages.id_list([i]) + s for i, s in sorted(signatures.items()))
    self._answering = sorted(signatures) if self.session.active else self._survivors
    bodies = {i: messages.request(*self._asked(i), signed) for i in self._answering}
    return self._to(Kind.REQUEST, bodies)

  def _close_unmask(self, present: list[int]) -> Closed:
    alive = set(self._survivors)
    # The dropped clients whose masks are in the sum: they have a surviving neighbour.
    gone = [i for i in self._commitments if i not in alive and self._neighbours(i, alive)]
    seeds = self._restore(self._survivors, 0, present)
    secrets = self._restore(gone, 1, present)
    for client, seed in seeds.items():
      commitment = seed_commitment(self.session, client, seed)
      if not primitives.same(commitment, self._commitments[client]):
        raise ProtocolError(f'shares must restore the seed of client {client}, got other bytes.')
    plus: list[bytes] = []
    minus = [self_mask_key(self.session, i, seed) for i, seed in seeds.items()]
    for client, secret in secrets.items():
      pair = primitives.Pair(secret)
      if not primitives.same(pair.public, self._keys[client][primitives.KEY_BYTES :]):
        raise ProtocolError(f'shares must restore the secret of client {client}, got other bytes.')
      for peer in self._neighbours(client, alive):
        public = self._keys[peer][primitives.KEY_BYTES :]
        key = pair_mask_key(self.session, pair, client, peer, public)
        # The survivor added the pairwise mask if its id is the lower one, else it subtracted it.
        (minus if peer < client else plus).append(key)
    primitives.add_masks(self._sum, plus, minus)
    self._total = self._sum.view(self._sum.dtype.str.replace('u', 'i')).astype(np.int64)
    return {}, None

  def _restore(self, clients: list[int], secret: int, present: list[int]) -> dict[int, bytes]:
    """Returns one of the two secrets of each client, from the shares of the present clients.

    Clients with the same first t holders are restored together, in one NumPy operation.
    """
    shares = {}
    for holder in present:
      found = messages.records(self._bodies[holder], messages.SHARE_RECORD)
      kept = found[found['secret'] == secret]
      shares.update(
        {(holder, i): s for i, s in zip(kept['id'].tolist(), kept['share'], strict=True)}
      )
    needed, here = self.session.threshold, set(present)
    groups: dict[tuple[int, ...], list[int]] = {}
    for client in clients:
      holders = [i for i in self.session.holders(client).tolist() if i in here]
      if len(holders) < needed:
        raise BelowThreshold(
          f'shares of client {client} must be {needed} or more, got {len(holders)}: '
          'nothing is released.'
        )
      groups.setdefault(tuple(holders[:needed]), []).append(client)
    restored: dict[int, bytes] = {}
    for group, members in groups.items():
      rows = np.array([[shares[h, m] for m in members] for h in group])
      restored.update(zip(members, shamir.restore(np.array(group), rows), strict=True))
    return restored

  _CHECKS: ClassVar[dict[Kind, Callable[['Server', int, memoryview], None]]] = {
    Kind.ADVERTISE: _check_keys,
    Kind.SHARES: _check_shares,
    Kind.MASKED: _check_masked,
    Kind.CHECK: _check_survivors,
    Kind.UNMASK: _check_unmask,
  }
  _CLOSES: ClassVar[dict[Kind, Callable[['Server', list[int]], Closed]]] = {
    Kind.ADVERTISE: _close_keys,
    Kind.SHARES: _close_shares,
    Kind.MASKED: _close_masked,
    Kind.CHECK: _close_check,
    Kind.UNMASK: _close_unmask,
  }
