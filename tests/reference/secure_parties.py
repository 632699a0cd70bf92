"""Clients and a server of one small session, driven by hand; for the tests of the protocol."""

import os

import numpy as np

from fedjax_mem.secagg import graph, messages, protocol
from fedjax_mem.secagg.messages import Kind

SIZE = 5


def identities(count, mode):
  """Returns the identities of clients, or none in semi-honest mode."""
  return [protocol.Identity() for _ in range(count)] if mode == 'active' else []


def session(mode='semi_honest', n=4, t=3, known=(), neighbours=None, **other):
  """Returns a session of n clients and five integers of 16 bits."""
  given = {'name': os.urandom(16), 'size': SIZE, 'bound': 1000, 'bits': 16, **other}
  public = tuple(identity.public for identity in known)
  degree = graph.Degree(n, neighbours, t)
  return protocol.Session(degree=degree, mode=mode, identities=public, **given)


class Parties:
  """All parties, and what each was sent last."""

  def __init__(self, mode='semi_honest', n=4, t=3, **other):
    """Makes them; client i's values are drawn with seed i."""
    self.identities = identities(n, mode)
    self.session = session(mode, n, t, self.identities, **other)
    signers = self.identities or [None] * n
    self.clients = [protocol.Client(self.session, i, signers[i]) for i in range(n)]
    self.server = protocol.Server(self.session)
    self.inbox = dict.fromkeys(range(n), b'')
    bound, size = self.session.bound, self.session.size
    draw = lambda i: np.random.default_rng(i).integers(-bound, bound, size, endpoint=True)
    self.values = [draw(i) for i in range(n)]

  def answer(self, i, message=None):
    """Returns client i's message of this round, to what it was sent or to another message."""
    kind = self.server.round
    message = self.inbox[i] if message is None else message
    client = self.clients[i]
    return {
      Kind.ADVERTISE: lambda: client.advertise_keys(),
      Kind.SHARES: lambda: client.share_keys(message),
      Kind.MASKED: lambda: client.mask(message, self.values[i]),
      Kind.CHECK: lambda: client.check(message),
      Kind.UNMASK: lambda: client.unmask(message),
    }[kind]()

  def step(self, silent=()):
    """Plays one round; some are silent. Returns the messages of the others."""
    sent = {i: self.answer(i) for i in self.inbox if i not in silent}
    for i, message in sent.items():
      self.server.receive(i, message)
    self.inbox = self.server.close_round()
    return sent

  def until(self, kind, silent=None):
    """Plays the rounds before that one; `silent` maps a round to who is silent in it."""
    while self.server.round != kind:
      self.step((silent or {}).get(self.server.round, ()))
    return self

  def expected(self):
    """Returns the plain sum of the survivors."""
    return np.sum([self.values[i] for i in self.server.survivors], axis=0)

  def from_server(self, kind, to, body):
    """Returns a message as the server would send it."""
    return messages.pack(self.session, kind, messages.SERVER, to, body)

  def from_client(self, kind, sender, body, claims=None):
    """Returns a message as client `sender` would send it, under its own or another's id."""
    identity = self.identities[sender] if self.identities else None
    claims = sender if claims is None else claims
    return messages.pack(self.session, kind, claims, messages.SERVER, body, identity)


def body(message, session, signed):
  """Returns the body of a message."""
  return message[45 : -64 if signed and session.active else -32]
