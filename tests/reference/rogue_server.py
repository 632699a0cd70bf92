"""An aggregation server that deviates from the protocol: what it keeps, and what it computes.

Client 0 is the victim, whose integers it is after.
"""

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from fedjax_mem.secagg import messages, primitives, shamir
from fedjax_mem.secagg.client import pair_mask_key, seed_commitment, self_mask_key
from fedjax_mem.secagg.errors import ProtocolError
from fedjax_mem.secagg.messages import Kind
from tests.reference.secure_parties import Parties, body

VICTIM = 0
SEED, SECRET = 0, 1  # of a client's two secrets


class Result(NamedTuple):
  """How an attack ended.

  Attributes:
    values: what the server takes for the victim's integers, or None.
    truth: the victim's integers.
    refused: the client's words, if one refused.
    got: what the server got besides, in words.
  """

  values: np.ndarray | None
  truth: np.ndarray
  refused: str = ''
  got: str = ''

  @property
  def won(self) -> bool:
    """Whether the server has the victim's integers."""
    return self.values is not None and bool(np.array_equal(self.values, self.truth))


class Server:
  """What a server that deviates keeps and computes.

  Attributes:
    parties: the clients, and an honest server that is followed up to the deviation.
    keys: client -> (key for boxes, key for masks), as advertised.
    masked: client -> masked integers.
    commitments: client -> hash of its self-mask seed.
    shares: (client, secret) -> holder -> share.
  """

  def __init__(self, parties: Parties):
    self.parties, self.session = parties, parties.session
    self.keys: dict[int, tuple[bytes, bytes]] = {}
    self.masked: dict[int, bytes] = {}
    self.commitments: dict[int, bytes] = {}
    self.shares: dict[tuple[int, int], dict[int, np.ndarray]] = {}

  def read(self, message: bytes) -> bytes:
    """Returns the body of a client's message."""
    return body(message, self.session, True)

  def follow(self, kind: Kind) -> 'Server':
    """Plays honestly up to a round, and keeps what is sent."""
    while self.parties.server.round != kind:
      now = self.parties.server.round
      for i, message in self.parties.step().items():
        text = self.read(message)
        if now == Kind.ADVERTISE:
          self.keys[i] = text[:32], text[32:]
        if now == Kind.SHARES:
          self.commitments[i] = text[:32]
        if now == Kind.MASKED:
          self.masked[i] = text
    return self

  def send(self, kind: Kind, to: int, text: bytes) -> bytes:
    """Returns a message of the server's own making, well sealed."""
    return self.parties.from_server(kind, to, text)

  def told(self, client: int) -> bytes:
    """Returns the body of what an honest server would tell a client now."""
    return body(self.parties.inbox[client], self.session, False)

  def collect(self, holder: int, answer: bytes) -> None:
    """Keeps the shares in a client's last message."""
    for record in np.frombuffer(self.read(answer), messages.SHARE_RECORD):
      self.hold(holder, int(record['id']), int(record['secret']), record['share'])

  def hold(self, holder: int, client: int, secret: int, share: np.ndarray) -> None:
    """Keeps a share."""
    self.shares.setdefault((client, secret), {})[holder] = np.asarray(share)

  def pool(self, colluders: Iterable[int]) -> None:
    """Keeps all the shares that colluding clients hold, of both secrets of everybody."""
    for holder in colluders:
      for client, both in self.parties.clients[holder]._shares.items():
        for secret in (SEED, SECRET):
          self.hold(holder, client, secret, both[secret])

  def restore(self, client: int, secret: int) -> bytes | None:
    """Returns a secret that enough shares restore and that is the committed one, or None."""
    held = self.shares.get((client, secret), {})
    for holders in itertools.combinations(sorted(held), self.session.threshold):
      try:
        (found,) = shamir.restore(np.array(holders), np.stack([held[h] for h in holders])[:, None])
      except ProtocolError:
        continue
      if (
        secret == SEED and seed_commitment(self.session, client, found) == self.commitments[client]
      ):
        return found
      if secret == SECRET and primitives.Pair(found).public == self.keys[client][1]:
        return found
    return None

  def pair_key(self, peer: int) -> bytes | None:
    """Returns the key of the mask of the victim and a peer, by the secret of one of them."""
    for mine, theirs in ((VICTIM, peer), (peer, VICTIM)):
      secret = self.restore(mine, SECRET)
      if secret is not None:
        public = self.keys[theirs][1]
        return pair_mask_key(self.session, primitives.Pair(secret), mine, theirs, public)
    return None

  def unmask(
    self, masked: bytes, seed: bytes | None, pairs: dict[int, bytes | None]
  ) -> np.ndarray | None:
    """Returns the victim's integers, if the seed and the key of every pairwise mask are known."""
    if seed is None or None in pairs.values():
      return None
    words = np.frombuffer(masked, self.session.dtype).copy()
    plus = [key for peer, key in pairs.items() if peer < VICTIM]
    minus = [key for peer, key in pairs.items() if peer > VICTIM]
    primitives.add_masks(words, plus, [self_mask_key(self.session, VICTIM, seed), *minus])
    return words.view(f'<i{self.session.bits // 8}').astype(np.int64)

  def open(self, peers: Iterable[int]) -> np.ndarray | None:
    """Returns the victim's integers from the shares that are held."""
    pairs = {peer: self.pair_key(peer) for peer in peers}
    return self.unmask(self.masked[VICTIM], self.restore(VICTIM, SEED), pairs)

  def request(self, client: int, survivors: list[int], signatures: bytes = b'') -> str:
    """Asks a client for shares with this set of survivors; returns its refusal, if it refuses."""
    known = sorted(self.parties.clients[client]._shares)
    gone = [i for i in known if i not in survivors]
    text = messages.request(survivors, gone, signatures)
    try:
      answer = self.parties.clients[client].unmask(self.send(Kind.REQUEST, client, text))
    except ProtocolError as error:
      return f'client {client}: {error}'
    self.collect(client, answer)
    return ''

  def counted(self) -> str:
    """Returns how many shares of the victim's two secrets are held."""
    seed, secret = (len(self.shares.get((VICTIM, x), {})) for x in (SEED, SECRET))
    return f'{seed} shares of its seed, {secret} of its pairwise secret'
