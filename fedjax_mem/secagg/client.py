"""The client of the protocol: bytes in, bytes out, one method per round."""

import operator

import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.secagg import messages, primitives, shamir
from fedjax_mem.secagg.errors import BelowThreshold, ProtocolError
from fedjax_mem.secagg.messages import CLIENT_KINDS, SERVER, Kind
from fedjax_mem.secagg.primitives import Identity
from fedjax_mem.secagg.session import Session


def word(client: int) -> bytes:
  """Returns a client's id as 4 bytes, for key labels."""
  return client.to_bytes(4, 'little')


def seed_commitment(session: Session, client: int, seed: bytes) -> bytes:
  """Returns the hash by which the server verifies a client's restored self-mask seed."""
  return primitives.digest(b'self-mask seed', session.digest, word(client), seed)


def self_mask_key(session: Session, client: int, seed: bytes) -> bytes:
  """Returns the key of a client's self mask."""
  return primitives.derive(seed, b'self mask', session.digest, word(client))


def pair_mask_key(session: Session, pair: primitives.Pair, a: int, b: int, peer: bytes) -> bytes:
  """Returns the key of the pairwise mask of clients a and b.

  Args:
    session: the session.
    pair: key pair of one of the two.
    a: id of one client.
    b: id of the other client.
    peer: public key of the client that does not own `pair`.
  """
  return pair.agree(peer, b'pair mask', session.digest, word(min(a, b)), word(max(a, b)))


class Client:
  """One client in one session; every method is called once, in this order.

  A refused message changes nothing: the client still accepts the genuine one. A method answers only
  once, so no secret is shared twice, and the client answers for one set of survivors only.

  Raises:
    ValueError: the id is out of range, or the identity is not the one that the session lists.
  """

  def __init__(self, session: Session, client: int, identity: Identity | None = None):
    """Makes the client; in active mode `identity` is its Ed25519 identity."""
    self.session = session
    self.id = validate.integer(at_least=0, at_most=session.num_clients - 1, client=client)
    if session.active:
      if identity is None or identity.public != session.identities[client]:
        raise ValueError('identity must be the one that the session lists for this client.')
    elif identity is not None:
      raise ValueError("identity must be None in mode 'semi_honest': nothing is signed.")
    self._identity = identity
    self._next = Kind.ADVERTISE
    self._box_pair = primitives.Pair()
    self._mask_pair = primitives.Pair()
    self._seed = primitives.random_bytes(primitives.KEY_BYTES)
    self._open_keys: dict[int, bytes] = {}
    self._mask_keys: dict[int, bytes] = {}
    # Client id -> share of its two secrets, [2, LIMBS], the seed's first; this client included.
    self._shares: dict[int, np.ndarray] = {}
    self._signed: list[int] | None = None

  def __repr__(self) -> str:
    """Shows the id and the next message, and no secret."""
    return f'Client(id={self.id}, next={self._next.name})'

  def advertise_keys(self) -> bytes:
    """Returns the two public keys, which are fresh in each session (round 0)."""
    self._expect(Kind.ADVERTISE)
    return self._send(Kind.ADVERTISE, self._box_pair.public + self._mask_pair.public)

  def share_keys(self, keys: bytes) -> bytes:
    """Returns the shares of both secrets, encrypted for each present neighbour (round 1).

    Args:
      keys: the server's message: the public keys of the present neighbours.

    Raises:
      ProtocolError: a malformed message (see `messages.unpack`); a client that is unknown, listed
        twice or has a bad signature; a key that occurs twice or is of low order.
      BelowThreshold: too few clients are present.
    """
    self._expect(Kind.SHARES)
    peers = self._peers(self._receive(Kind.KEYS, keys))
    seals, open_keys, mask_keys = {}, {}, {}
    for peer, (box, mask) in peers.items():
      out, back = (self._box_key(peer, box, sends) for sends in (True, False))
      seals[peer], open_keys[peer] = primitives.Box(out), back
      mask_keys[peer] = pair_mask_key(self.session, self._mask_pair, self.id, peer, mask)
    holders = np.array(sorted([*peers, self.id]))
    secrets = [self._seed, self._mask_pair.secret]
    shares = shamir.split(secrets, self.session.threshold, holders)
    sent = np.zeros(len(peers), messages.BOX_RECORD)
    sent['id'] = sorted(peers)
    for row, share in zip(sent, shares[holders != self.id], strict=True):
      peer = int(row['id'])
      box = seals[peer].seal(share.astype('<u4').tobytes(), self._bound(self.id, peer))
      row['box'] = np.frombuffer(box, np.uint8)
    self._open_keys, self._mask_keys = open_keys, mask_keys
    self._shares = {self.id: shares[holders == self.id][0]}
    commitment = seed_commitment(self.session, self.id, self._seed)
    return self._send(Kind.SHARES, commitment + sent.tobytes())

  def mask(self, boxes: bytes, values: np.ndarray) -> bytes:
    """Returns the values plus the self mask and a mask per remaining neighbour (round 2).

    Args:
      boxes: the server's message: the encrypted shares for this client, by neighbour.
      values: integers [D], at most the session's bound in magnitude.

    Raises:
      ProtocolError: a malformed message, or an altered box.
      BelowThreshold: too few clients are present.
      ValueError: the values have another shape or dtype, or one is out of range.
    """
    self._expect(Kind.MASKED)
    body = self._receive(Kind.BOXES, boxes)
    sent = messages.records(body, messages.BOX_RECORD)
    present = messages.ascending(sent['id'], np.array(list(self._open_keys), np.int64))
    self._enough(len(present) + 1, 'clients that shared their keys')
    shares = {}
    for peer, row in zip(present, sent, strict=True):
      bound = self._bound(peer, self.id)
      text = primitives.unseal(self._open_keys[peer], row['box'].tobytes(), bound)
      shares[peer] = np.array(np.frombuffer(text, '<u4').reshape(2, shamir.LIMBS))
    total = self._words(values)
    plus = [self._mask_keys[peer] for peer in present if peer > self.id]
    minus = [self._mask_keys[peer] for peer in present if peer < self.id]
    own = self_mask_key(self.session, self.id, self._seed)
    primitives.add_masks(total, [own, *plus], minus)
    self._shares.update(shares)
    return self._send(Kind.MASKED, total.tobytes())

  def check(self, survivors: bytes) -> bytes:
    """Returns the survivors that the server sent, signed (active mode, round 3).

    Raises:
      ProtocolError: it is not among the survivors, or one of them never shared its keys.
      BelowThreshold: the survivors are too few.
    """
    if not self.session.active:
      raise ProtocolError("survivors must be checked in mode 'active' only.")
    self._expect(Kind.CHECK)
    body = self._receive(Kind.SURVIVORS, survivors)
    alive = messages.ascending(messages.records(body, messages.ID), np.array(list(self._shares)))
    self._surviving(alive)
    self._signed = alive
    return self._send(Kind.CHECK, bytes(body))

  def unmask(self, request: bytes) -> bytes:
    """Returns a share per neighbour: of its seed if it survived, else of its pairwise secret.

    Args:
      request: the server's message: survivors, dropped clients and, in active mode, signatures.

    Raises:
      ProtocolError: the request asks for both secrets of one client, for a client that never shared
        its keys, or not for all that did; the survivors are not those that this client signed, or
        fewer than t clients signed the same.
      BelowThreshold: the survivors are too few.
    """
    self._expect(Kind.UNMASK)
    survivors, dropped, signatures = messages.parse_request(self._receive(Kind.REQUEST, request))
    known = np.array(list(self._shares))
    if np.isin(survivors, dropped).any():
      raise ProtocolError('a request must not ask for both secrets of one client.')
    alive, gone = messages.ascending(survivors, known), messages.ascending(dropped, known)
    if len(alive) + len(gone) != len(known):
      raise ProtocolError('a request must be for all that shared their keys, and no other.')
    self._surviving(alive)
    if self.session.active:
      self._consistent(alive, signatures)
    elif len(signatures):
      raise ProtocolError("a request must have no signatures in mode 'semi_honest'.")
    answer = np.zeros(len(known), messages.SHARE_RECORD)
    answer['id'] = alive + gone
    answer['secret'] = [0] * len(alive) + [1] * len(gone)
    answer['share'] = [self._shares[i][0] for i in alive] + [self._shares[i][1] for i in gone]
    return self._send(Kind.UNMASK, answer.tobytes())

  def erase(self) -> None:
    """Drops every secret, and the shares of others' secrets; every later call is refused.

    Arrays are overwritten. Python cannot overwrite bytes, and frees them once nobody refers to
    them.
    """
    for share in self._shares.values():
      share.fill(0)
    self._shares, self._open_keys, self._mask_keys = {}, {}, {}
    self._seed, self._identity = b'', None
    # A pair that nobody has seen stands for the two that are dropped.
    self._box_pair = self._mask_pair = primitives.Pair()
    self._next = Kind.KEYS

  def _expect(self, kind: Kind) -> None:
    if self._next != kind:
      raise ProtocolError(f'{kind.name} must come in its turn, and once, got it out of turn.')

  def _receive(self, kind: Kind, message: bytes) -> memoryview:
    return messages.unpack(self.session, kind, SERVER, self.id, message)

  def _send(self, kind: Kind, body: bytes) -> bytes:
    message = messages.pack(self.session, kind, self.id, SERVER, body, self._identity)
    after = CLIENT_KINDS[CLIENT_KINDS.index(kind) + 1 :]
    if not self.session.active:
      after = tuple(step for step in after if step != Kind.CHECK)
    self._next = after[0] if after else Kind.KEYS  # a kind that clients never send: it is done
    return message

  def _enough(self, count: int, what: str) -> None:
    if count < self.session.threshold:
      raise BelowThreshold(f'{what} must be {self.session.threshold} or more, got {count}.')

  def _bound(self, sender: int, receiver: int) -> bytes:
    """Returns the public bytes (associated data) that a box is bound to."""
    return b'shares' + self.session.digest + word(sender) + word(receiver)

  def _box_key(self, peer: int, public: bytes, sends: bool) -> bytes:
    sender, receiver = (self.id, peer) if sends else (peer, self.id)
    label = (b'box', self.session.digest, word(sender), word(receiver))
    return self._box_pair.agree(public, *label)

  def _peers(self, body: memoryview) -> dict[int, tuple[bytes, bytes]]:
    """Returns the checked public keys of each present neighbour."""
    signed = self.session.active
    dtype = messages.SIGNED_KEY_RECORD if signed else messages.KEY_RECORD
    found = messages.records(body, dtype)
    holders = self.session.holders(self.id)
    ids = messages.ascending(found['id'], holders[holders != self.id])
    self._enough(len(ids) + 1, 'clients that advertised keys')
    peers = {i: (r['box'].tobytes(), r['mask'].tobytes()) for i, r in zip(ids, found, strict=True)}
    every = [self._box_pair.public, self._mask_pair.public]
    every += [key for pair in peers.values() for key in pair]
    if len(set(every)) < len(every):
      raise ProtocolError('public keys must be distinct, got one twice.')
    for i, row in zip(ids, found, strict=True):
      content = messages.signed_part(self.session, Kind.ADVERTISE, i, b''.join(peers[i]))
      identity = self.session.identities[i] if signed else b''
      if signed and not primitives.verify(identity, row['signature'].tobytes(), content):
        raise ProtocolError(f'the keys of client {i} must be signed by it, got others.')
    return peers

  def _words(self, values: np.ndarray) -> np.ndarray:
    """Returns a copy of the checked values, modulo 2 ** b."""
    values = np.asarray(values)
    if values.shape != (self.session.size,) or values.dtype.kind not in 'iu':
      got = f'{values.dtype.name}{list(values.shape)}'
      raise ValueError(f'values must be {self.session.size} integers, got {got}.')
    bound = self.session.bound
    if int(values.max()) > bound or int(values.min()) < -bound:
      raise ValueError(f'values must be at most {bound} in magnitude, got a larger one.')
    return values.astype(self.session.dtype)

  def _surviving(self, alive: list[int]) -> None:
    if self.id not in alive:
      raise ProtocolError('survivors must include the client that is asked.')
    self._enough(len(alive), 'survivors')

  def _consistent(self, alive: list[int], signatures: np.ndarray) -> None:
    """Raises unless t survivors have signed this same list; this client need not be one of them."""
    if alive != self._signed:
      raise ProtocolError('survivors must be those that this client signed, got others.')
    signers = messages.ascending(signatures['id'], np.array(alive))
    self._enough(len(signers), 'signatures of the survivors')
    body = messages.id_list(alive)
    for signer, row in zip(signers, signatures, strict=True):
      content = messages.signed_part(self.session, Kind.CHECK, signer, body)
      identity = self.session.identities[operator.index(signer)]
      if not primitives.verify(identity, row['signature'].tobytes(), content):
        raise ProtocolError(f'survivors must be signed by client {signer}, got another signature.')
