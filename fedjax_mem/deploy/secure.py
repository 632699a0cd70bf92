"""The masks of a deployed round: the protocol of `secagg`, in place of the simulated ones.

`bare` is the round that both parties run: its masking layer makes integers of update, weight and
aux and adds no mask, and turns their sum back into a message. What lies between is here: a client
gives the protocol its integers (`Sealing.values`, `Party`), and the server gets their sum over the
survivors and nothing else (`collect`, `Sealing.message`). The sum is that of the simulation, bit
for bit.

A client whose update is not finite sends what it sends in the simulation: zeros of weight 0, or of
full weight under a claim of privacy. Without a claim the simulation counts it among those that
dropped out. Here the server cannot see its message, and counts it among those that arrived.

A masked update is hidden by who else is in the sum. The sums of one update with two sets of
survivors may differ by a single client: a client must answer for one session of a round only, of a
name that it has not seen before. `Party` is one session, and cannot know of others.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedjax_mem.core import IncompatibleStages, Masks, Message, Round, Tree, Withholds, compose
from fedjax_mem.secagg import graph, protocol
from fedjax_mem.secagg.client import Client
from fedjax_mem.secagg.errors import BelowThreshold, ProtocolError
from fedjax_mem.secagg.messages import Kind
from fedjax_mem.secagg.messages import limit as limit
from fedjax_mem.secagg.primitives import Identity
from fedjax_mem.secagg.server import Server
from fedjax_mem.secagg.session import Session

# (kind, slot -> the server's message) -> slot -> the answers that came in time
Ask = Callable[[Kind, dict[int, bytes]], Mapping[int, bytes]]


def bare(layers: Round) -> Round | None:
  """Returns the round without its simulated masks; None if it has none.

  Keys, states and specs are named by layers, which keep their names: the draws of all others are
  those of the simulation. Whoever runs this round must mask its messages by the protocol: the facts
  of the layer, and so every check and claim, still say that only the sum is seen.

  Raises:
    IncompatibleStages: a layer masks, and has no form without masks.
  """
  masking = {x.name: fact.bare for x, _, fact in layers.having(Masks)}
  for name, layer in masking.items():
    if layer is None:
      raise IncompatibleStages(
        f'{name!r} masks messages in a simulation only (its fact Masks has no bare layer): use '
        '`mask` in a deployment.'
      )
  made = [masking.get(x.name) or x for x in layers]
  return compose(*made) if masking else None


def session_name(run: str, round: int, salt: bytes) -> bytes:
  """Returns the name of a round's session, 32 bytes.

  A client answers a round of a run once: as its name is of that round, whatever the server sends,
  no two of its sessions have one name, and nothing that was signed in one is of use in another.

  Args:
    run: id of the run.
    round: from 0.
    salt: from the server.
  """
  return hashlib.sha256(b'\0'.join((run.encode(), str(round).encode(), salt))).digest()


class Sealing(NamedTuple):
  """The integers of a round's messages; all parties compute the same, by `sealing`.

  Attributes:
    like: shapes of what the masking layer receives; all leaves are sent as integers.
    bits: of the modulus of the update's integers; those of weight and aux have 32.
    largest: largest magnitude of one of a client's integers of the update.
    clients: the most clients of a round.
    least: the fewest clients whose sum may be released.
  """

  like: Message
  bits: int
  largest: int
  clients: int
  least: int

  @property
  def size(self) -> int:
    """D, the number of integers that a client sends."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(self.like))

  def values(self, message: Message) -> np.ndarray:
    """Returns what one client masks, int64 [D]: update, weight and aux, leaf after leaf.

    Args:
      message: what leaves the client sides of the bare round, int32.

    Raises:
      ValueError: the message has other shapes or dtypes.
    """
    leaves: list[jax.Array] = jax.tree.leaves(message)
    structures: Any = [jax.tree.structure(x) for x in (message, self.like)]
    found = [(x.shape, np.dtype(x.dtype)) for x in leaves]
    wanted = [(x.shape, np.dtype(np.int32)) for x in jax.tree.leaves(self.like)]
    if found != wanted or structures[0] != structures[1]:
      raise ValueError(f'message must be int32 of the shapes of the round, got {found!r}.')
    half = 2 ** (self.bits - 1)
    whole = [np.asarray(x).astype(np.int64).ravel() for x in leaves]
    # The residue of least magnitude, which the session's bound counts on: noise may go beyond it.
    count = len(jax.tree.leaves(self.like.update))
    whole[:count] = [(x + half) % (2 * half) - half for x in whole[:count]]
    return np.concatenate(whole)

  def message(self, total: np.ndarray) -> Message:
    """Returns the sum of the messages as it enters the server sides of the bare round, int32.

    Args:
      total: int64 [D], the sum of `values` over the survivors.

    Raises:
      ValueError: the total has another shape or dtype.
    """
    if total.shape != (self.size,) or total.dtype != np.int64:
      raise ValueError(
        f'total must be {self.size} int64, got {total.dtype.name}{list(total.shape)}.'
      )
    leaves, structure = jax.tree.flatten(self.like)
    ends = np.cumsum([math.prod(x.shape) for x in leaves])[:-1]
    parts = np.split(total.astype(np.int32), ends)  # modulo 2 ** 32, as the simulation adds
    shaped = [x.reshape(y.shape) for x, y in zip(parts, leaves, strict=True)]
    made: Message = jax.tree.unflatten(structure, shaped)
    return made

  def session(
    self,
    name: bytes,
    clients: int,
    threshold: int | None = None,
    identities: Sequence[bytes] = (),
  ) -> Session:
    """Returns the public parameters of one round's sum, of all pairs of its clients.

    A session has one modulus, the simulation one for the update (2 ** bits, bits <= 32) and one for
    weight and aux (2 ** 32). Both divide 2 ** 32 and 2 ** 64, so a sum modulo either gives the
    simulation's. 32 bits are taken if the protocol's own condition holds, that the sum of all
    clients cannot overflow; else 64.

    Args:
      name: 16 bytes or more, the same for all parties, never used for another sum.
      clients: n, clients of this round, in the slots 0 to n - 1.
      threshold: t, clients that have to stay; None: the fewest that protect a client, and that the
        round releases a sum of.
      identities: Ed25519 public keys by slot. With them clients sign, and are protected from a
        server that deviates (t > 2 n / 3); without, from one that follows the protocol (t > n / 2).

    Raises:
      BelowThreshold: the round has too few clients.
      ValueError: an argument is out of range, or does not fit the others.
    """
    needed = max(2, self.least)
    if clients < needed:
      raise BelowThreshold(f'clients must be {needed} or more, got {clients}: nothing is released.')
    if clients > self.clients:
      raise ValueError(f'clients must be at most {self.clients}, got {clients!r}.')
    if threshold is None:
      threshold = max(self.least, graph.complete(clients, active=bool(identities)).threshold)
    if threshold < self.least:
      raise ValueError(
        f'threshold must be at least {self.least}, the fewest clients whose sum the round '
        f'releases, got {threshold!r}.'
      )
    # `mask` leaves weight and aux about 2 ** 30 / clients: what 32 bits allow is twice as much.
    most = (2**31 - 1) // clients
    bits, bound = (32, most) if self.largest <= most else (64, 2**31)
    return Session(
      name=name,
      degree=graph.Degree(clients, None, threshold),
      size=self.size,
      bound=bound,
      bits=bits,
      mode='active' if identities else 'semi_honest',
      identities=tuple(identities),
    )


def sealing(layers: Round, specs: dict[str, Tree]) -> Sealing:
  """Returns the integers of a round's messages.

  Args:
    layers: of the round, with its masks or without them (`bare`).
    specs: for each layer, the shapes of what its client side receives.

  Raises:
    IncompatibleStages: no layer masks.
  """
  found = layers.having(Masks)
  if not found:
    raise IncompatibleStages('a layer must mask messages (state Masks): put `mask` last.')
  layer, side, fact = found[-1]
  linf = layers.bound(layer, side, specs).linf
  largest = 2 ** (fact.bits - 1)
  if isinstance(linf, int | float) and math.isfinite(linf):
    # A whole number that was divided and multiplied by a step may be one rounding below itself.
    largest = min(largest, math.floor(linf * (1 + 2**-40)))
  least = max((x.least for _, _, x in layers.having(Withholds)), default=1)
  return Sealing(specs[layer.name], fact.bits, largest, layers.draws.capacity, least)


def identity(key: Ed25519PrivateKey) -> Identity:
  """Returns the identity of a client in a session, with the key by which it signs its messages.

  One key may sign both: the protocol signs 57 bytes that begin with 'fedjax_mem secure message',
  and within them the digest of kind, sender and session. Whatever else the key signs must begin
  with other bytes.
  """
  return Identity(key.private_bytes_raw())


class Collected(NamedTuple):
  """What the server has after the protocol.

  Attributes:
    total: int64 [D], the sum over the survivors.
    survivors: slots of the clients in the sum, ascending.
    refused: (slot, why) of every answer that was refused; its client counts as dropped out.
  """

  total: np.ndarray
  survivors: tuple[int, ...]
  refused: tuple[tuple[int, str], ...]


def collect(session: Session, ask: Ask) -> Collected:
  """Runs the server's side of a session.

  Args:
    session: the public parameters.
    ask: sends every slot its message and returns the answers that came in time, whole or not; a
      slot without an answer has dropped out.

  Raises:
    BelowThreshold: too few clients are left; nothing is released.
    ProtocolError: shares do not restore what was committed to; nothing is released.
  """
  server = Server(session)
  inbox = dict.fromkeys(range(session.num_clients), b'')
  refused: list[tuple[int, str]] = []
  for kind in protocol.rounds(session):
    answers = ask(kind, inbox)
    for slot in sorted(answers):
      try:
        server.receive(slot, answers[slot])  # refuses one beyond `limit` before it reads it
      except ProtocolError as error:
        refused.append((slot, str(error)))
    inbox = server.close_round()
  return Collected(server.total(), server.survivors, tuple(refused))


class Party:
  """A client's side of one session: it masks one update of one round.

  Every kind is answered once, in its turn, for one set of survivors. A refused message changes
  nothing: the genuine one is still answered. After the last answer, or `erase`, no secret is left.

  Raises:
    ValueError: the slot is out of range, or the identity is not the one that the session lists.
  """

  def __init__(self, session: Session, slot: int, identity: Identity | None = None):
    """Makes the party, with fresh keys; `identity` is needed if the session has identities."""
    self.slot = slot
    self._kinds = protocol.rounds(session)
    self._client: Client | None = Client(session, slot, identity)

  def __repr__(self) -> str:
    """Shows the slot and the next kind, and no secret."""
    return f'Party(slot={self.slot}, next={self._kinds[0].name if self._client else None})'

  def answer(self, kind: Kind, inbox: bytes, values: Callable[[], np.ndarray]) -> bytes:
    """Returns the answer to the server's message.

    Args:
      kind: the round of the protocol.
      inbox: the server's message; empty in the first round.
      values: returns the client's integers, int64 [D]; called only when they are masked.

    Raises:
      BelowThreshold: too few clients are left.
      ProtocolError: the kind is not the next one, or the protocol does not allow the message.
      ValueError: the values have another shape or dtype, or one is out of range.
    """
    if self._client is None or kind != self._kinds[0]:
      raise ProtocolError(f'{kind.name} must come in its turn, and once, got it out of turn.')
    given = values() if kind == Kind.MASKED else None
    made = protocol.answer(self._client, kind, inbox, given)
    self._kinds = self._kinds[1:]
    if not self._kinds:
      self.erase()
    return made

  def erase(self) -> None:
    """Drops all secrets, overwriting those in arrays; every later request is refused."""
    if self._client is not None:
      self._client.erase()
    self._client = None
