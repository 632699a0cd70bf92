"""The protocol of secure aggregation, on the host: the server learns the sum but no summand.

Bonawitz et al. (2017): clients and server are separate objects that exchange only bytes.

| round | a client sends | the server sends on |
|---|---|---|
| ADVERTISE | two X25519 public keys | the keys of a client's neighbours |
| SHARES | shares of its mask secret and its seed, encrypted for each neighbour | these boxes |
| MASKED | its integers plus a self mask and one mask per neighbour | the survivors |
| CHECK (active) | its signature of the survivors | the signatures |
| UNMASK | of each neighbour, a share of the seed (survived) or of the mask secret (dropped) | – |

Up to n - t clients in all may drop out, in any rounds. Below the threshold the session ends and
nothing is released. `Session` documents what each mode protects against, `graph` what SecAgg+
assumes. Beyond the paper, a client sends a hash of its seed with the shares, so that the server
detects altered shares instead of returning a wrong sum; and in active mode it signs every message.
The protocol does not prevent clients from sending wrong values, which change the sum within the
range of the integers, or wrong shares, which end the session. Secrets are kept in ordinary memory
for as long as the objects live: make new objects for every sum.

References: Bonawitz, Ivanov, Kreuter, Marcedone, McMahan, Patel, Ramage, Segal, Seth (2017),
"Practical secure aggregation for privacy-preserving machine learning", Figure 4; Bell et al.
(2020), "Secure single-server aggregation with (poly)logarithmic overhead", Algorithm 2.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from fedjax_mem.secagg.client import Client
from fedjax_mem.secagg.messages import CLIENT_KINDS, Kind
from fedjax_mem.secagg.primitives import Identity
from fedjax_mem.secagg.server import Server
from fedjax_mem.secagg.session import Session


class Outcome(NamedTuple):
  """The result and the cost of one run of the protocol.

  Attributes:
    total: int64 [D], the sum over the survivors.
    survivors: ids of the clients in the sum.
    sent: int64 [n], bytes that each client sent.
    received: int64 [n], bytes that each client received.
    client_seconds: float64 [n], computing time of each client in seconds.
    server_seconds: computing time of the server in seconds.
  """

  total: np.ndarray
  survivors: tuple[int, ...]
  sent: np.ndarray
  received: np.ndarray
  client_seconds: np.ndarray
  server_seconds: float


def rounds(session: Session) -> tuple[Kind, ...]:
  """Returns the rounds of a session, named by the kind of message that clients send in them."""
  return tuple(kind for kind in CLIENT_KINDS if session.active or kind != Kind.CHECK)


def run(
  session: Session,
  values: Callable[[int], np.ndarray],
  drops: Mapping[int, Kind] | None = None,
  identities: Mapping[int, Identity] | None = None,
) -> Outcome:
  """Runs all parties in this process, one client at a time, and measures each.

  Args:
    session: the public parameters.
    values: client id -> its integers [D]; called when the client masks them.
    drops: client id -> first round in which the client sends nothing.
    identities: client id -> identity, of all clients, in active mode.

  Raises:
    BelowThreshold: too few clients are left.
    ProtocolError: a client or the server refused a message.
  """
  n = session.num_clients
  clients = {i: Client(session, i, (identities or {}).get(i)) for i in range(n)}
  server = Server(session)
  sent, received, seconds = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n)
  inbox = dict.fromkeys(clients, b'')
  working = 0.0
  for kind in rounds(session):
    for i, message in inbox.items():
      if drops and i in drops and drops[i] <= kind:
        continue
      given = values(i) if kind == Kind.MASKED else None
      began = time.perf_counter()
      reply = answer(clients[i], kind, message, given)
      between = time.perf_counter()
      server.receive(i, reply)
      seconds[i] += between - began
      working += time.perf_counter() - between
      sent[i] += len(reply)
      received[i] += len(message)
    began = time.perf_counter()
    inbox = server.close_round()
    working += time.perf_counter() - began
  return Outcome(server.total(), server.survivors, sent, received, seconds, working)


def answer(client: Client, kind: Kind, message: bytes, values: np.ndarray | None) -> bytes:
  """Returns a client's answer to the server's message in a round.

  Args:
    client: the client.
    kind: the round.
    message: the server's message; empty in the first round.
    values: the client's integers [D], in the round MASKED.
  """
  if kind == Kind.ADVERTISE:
    return client.advertise_keys()
  if kind == Kind.SHARES:
    return client.share_keys(message)
  if kind == Kind.MASKED and values is not None:
    return client.mask(message, values)
  return client.check(message) if kind == Kind.CHECK else client.unmask(message)
