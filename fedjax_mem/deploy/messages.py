"""What crosses between the server and its clients: signed envelopes, checked before they are read.

    envelope   magic 5s | length of the header u32 | header, JSON | body | Ed25519 signature 64s

A header names the run, the round, the turn (fresh for each exchange), the kind, the sender and who
it is for; the signature is over all of it and the body. A server takes an envelope only if it is of
this turn and the first of its sender: before its signature and all of that are checked, nothing of
its body is looked at.
"""

import dataclasses
import json
import struct
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAGIC = b'FMDE1'
_DOMAIN = b'fedjax_mem deployment envelope 1\0'  # the same keys sign secure aggregation's messages
_LENGTH = struct.Struct('<I')
_SIGNATURE = 64
_MOST_HEADER = 4096
OVERHEAD = len(MAGIC) + _LENGTH.size + _SIGNATURE  # bytes of an envelope beside header and body
SLACK = 1.1  # the most bytes of an envelope over those that the plan computes
SERVER = 'server'
# Why an envelope is refused, in the order in which it is checked.
REASONS = ('oversized', 'malformed', 'unknown', 'unsigned', 'altered', 'stale', 'replayed')


class Refused(ValueError):
  """A party refuses what the other one asks of it; the message is one line, cause and remedy."""


class Unfit(ValueError):
  """An envelope that does not count.

  Attributes:
    reason: one of `REASONS`.
  """

  def __init__(self, reason: str, words: str):
    super().__init__(f'{reason}: {words}')
    self.reason = reason


@dataclasses.dataclass(frozen=True)
class Header:
  """What an envelope is.

  Attributes:
    run: id of the run.
    round: number of the round, from 0; -1 before the first.
    turn: of the exchange, 32 hexadecimal digits, drawn by the server.
    kind: what the body is.
    sender: name of the sender, 'server' or a client's.
    to: name of who it is for.
  """

  run: str
  round: int
  turn: str
  kind: str
  sender: str
  to: str

  def reply(self, kind: str) -> 'Header':
    """Returns the header of the answer to this message."""
    return dataclasses.replace(self, kind=kind, sender=self.to, to=self.sender)


class Envelope(NamedTuple):
  """An envelope that is not checked yet, in its parts."""

  header: Header
  body: bytes
  said: bytes
  signature: bytes


def seal(key: Ed25519PrivateKey, header: Header, body: bytes) -> bytes:
  """Returns the envelope of a body, signed by its sender's key."""
  text = json.dumps(dataclasses.asdict(header), sort_keys=True).encode()
  said = MAGIC + _LENGTH.pack(len(text)) + text + body
  return said + key.sign(_DOMAIN + said)


def size(header: Header, body: int) -> int:
  """Returns the bytes of the envelope of a body of so many bytes."""
  return OVERHEAD + len(json.dumps(dataclasses.asdict(header), sort_keys=True).encode()) + body


def parse(data: bytes) -> Envelope:
  """Returns the parts of an envelope, whose signature is still to be verified.

  Raises:
    Unfit: 'malformed'.
  """
  start = len(MAGIC) + _LENGTH.size
  if len(data) < start + _SIGNATURE or not data.startswith(MAGIC):
    raise Unfit('malformed', 'no envelope')
  (length,) = _LENGTH.unpack_from(data, len(MAGIC))
  if length > _MOST_HEADER or start + length + _SIGNATURE > len(data):
    raise Unfit('malformed', 'its header is longer than it may be')
  try:
    fields: Any = json.loads(data[start : start + length])
    header = Header(**fields)
    types = {field.name: field.type for field in dataclasses.fields(Header)}
    sound = all(type(x) is types[name] for name, x in dataclasses.asdict(header).items())
  except (ValueError, TypeError, RecursionError):
    sound = False
  if not sound:
    raise Unfit('malformed', 'its header is not one')
  end = len(data) - _SIGNATURE
  return Envelope(header, data[start + length : end], data[:end], data[end:])


def verify(envelope: Envelope, public: bytes) -> None:
  """Raises `Unfit` unless the owner of the public key has signed the envelope."""
  if not any(envelope.signature):
    raise Unfit('unsigned', 'there is no signature')
  key = Ed25519PublicKey.from_public_bytes(public)
  try:
    key.verify(envelope.signature, _DOMAIN + envelope.said)
  except InvalidSignature:
    raise Unfit('altered', f'{envelope.header.sender!r} has not signed this') from None


class Inbox:
  """The server's gate: which envelopes of clients count in an exchange.

  Attributes:
    refused: reason -> number of envelopes refused, since the inbox was made.
    notes: (client, reason and words) of those of the last `expect`.
  """

  def __init__(self, run: str, public: Mapping[str, bytes]):
    """Makes the inbox.

    Args:
      run: id of the run.
      public: client -> its public key, 32 bytes.
    """
    self._run, self._public = run, dict(public)
    self._asked: dict[str, Header] = {}
    self._limit = 0
    self._seen: set[str] = set()
    self.refused: Counter[str] = Counter()
    self.notes: list[tuple[str, str]] = []

  def expect(self, asked: Mapping[str, Header], limit: int) -> None:
    """Begins an exchange.

    Args:
      asked: client -> the header of what it is asked, of one turn for all.
      limit: the most bytes of an answer by the plan, headers included.
    """
    self._asked, self._limit, self._seen, self.notes = dict(asked), limit, set(), []

  def take(self, name: str, data: bytes) -> Envelope | None:
    """Returns a client's envelope, or None, counted and noted, if it does not count.

    Args:
      name: of the client, as the engine has authenticated it.
      data: what it has sent.
    """
    try:
      envelope = self._checked(name, data)
    except Unfit as error:
      self.refused[error.reason] += 1
      self.notes.append((name, str(error)))
      return None
    self._seen.add(name)
    return envelope

  def unsound(self, name: str, why: str) -> None:
    """Counts and notes an envelope that was taken, and whose body is none of its kind."""
    self.refused['malformed'] += 1
    self.notes.append((name, f'malformed: {why}'))

  def _checked(self, name: str, data: bytes) -> Envelope:
    most = int(SLACK * self._limit)
    if len(data) > most:
      raise Unfit('oversized', f'{len(data)} bytes, and the plan has {self._limit}')
    envelope = parse(data)
    header = envelope.header
    if name not in self._public or header.sender != name:
      raise Unfit('unknown', f'{header.sender!r} through the connection of {name!r}')
    verify(envelope, self._public[name])
    asked = self._asked.get(name)
    if asked is None:
      raise Unfit('stale', 'nobody has asked for it')
    if header.run != self._run or (header.round, header.turn) != (asked.round, asked.turn):
      raise Unfit('stale', f'of round {header.round + 1} or of an earlier exchange')
    if header.to != SERVER or name in self._seen:
      raise Unfit('replayed', 'this exchange has an answer of the client, or it is for another')
    return envelope
