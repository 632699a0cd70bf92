"""The messages of the protocol: a header, a body of records of fixed size, and a seal.

header  bytes of: magic 4 | kind 1 | sender 4 | receiver 4 | digest of the session 32
seal    from clients in active mode: the Ed25519 signature of header and body, 64 bytes; else their
        SHA-256, 32 bytes. The hash detects accidents only: the channel (TLS) prevents forgery.

A message longer than its kind and session allow is refused before it is parsed.
"""

import enum
import struct

import numpy as np

from fedjax_mem.secagg import primitives
from fedjax_mem.secagg.errors import ProtocolError
from fedjax_mem.secagg.primitives import Identity
from fedjax_mem.secagg.session import Session
from fedjax_mem.secagg.shamir import LIMBS, SHARE_BYTES

SERVER = 2**32 - 1
_MAGIC = b'FMS1'
_HEADER = struct.Struct('<4sBII32s')
BOX_BYTES = 2 * SHARE_BYTES + primitives.TAG_BYTES


class Kind(enum.IntEnum):
  """Kinds of messages: first the clients', in the order of the rounds, then the server's."""

  ADVERTISE = 0
  SHARES = 1
  MASKED = 2
  CHECK = 3
  UNMASK = 4
  KEYS = 16
  BOXES = 17
  SURVIVORS = 18
  REQUEST = 19


# In the order of the rounds.
CLIENT_KINDS = (Kind.ADVERTISE, Kind.SHARES, Kind.MASKED, Kind.CHECK, Kind.UNMASK)

KEY_RECORD = np.dtype([('id', '<u4'), ('box', 'u1', (32,)), ('mask', 'u1', (32,))])
BOX_RECORD = np.dtype([('id', '<u4'), ('box', 'u1', (BOX_BYTES,))])
SIGNATURE_RECORD = np.dtype([('id', '<u4'), ('signature', 'u1', (primitives.SIGNATURE_BYTES,))])
SIGNED_KEY_RECORD = np.dtype([*KEY_RECORD.descr, ('signature', 'u1', (64,))])
# `secret` is 0 for a share of the self-mask seed of client `id` (it survived), and 1 for a share of
# its pairwise secret (it dropped out).
SHARE_RECORD = np.dtype([('id', '<u4'), ('secret', 'u1'), ('share', '<u4', (LIMBS,))])
ID = np.dtype('<u4')


def _body_limit(session: Session, kind: Kind) -> int:
  """Returns the largest number of bytes of a body of a kind."""
  held = len(session.holders(0))  # a client's neighbours and itself
  return {
    Kind.ADVERTISE: 2 * primitives.KEY_BYTES,
    Kind.SHARES: primitives.DIGEST_BYTES + (held - 1) * BOX_RECORD.itemsize,
    Kind.MASKED: session.size * session.dtype.itemsize,
    Kind.CHECK: held * ID.itemsize,
    Kind.UNMASK: held * SHARE_RECORD.itemsize,
    Kind.KEYS: (held - 1) * SIGNED_KEY_RECORD.itemsize,
    Kind.BOXES: (held - 1) * BOX_RECORD.itemsize,
    Kind.SURVIVORS: held * ID.itemsize,
    # Room for a request for both secrets of every client: it gets an error message of its own.
    Kind.REQUEST: 8 + held * (2 * ID.itemsize + SIGNATURE_RECORD.itemsize),
  }[kind]


def limit(session: Session, kind: Kind) -> int:
  """Returns the largest number of bytes of a message of a kind, to refuse larger ones unread.

  What a client sends has exactly this size as long as nobody has dropped out.
  """
  signed = session.active and kind in CLIENT_KINDS
  seal = primitives.SIGNATURE_BYTES if signed else primitives.DIGEST_BYTES
  return _HEADER.size + _body_limit(session, kind) + seal


def _header(session: Session, kind: Kind, sender: int, receiver: int) -> bytes:
  return _HEADER.pack(_MAGIC, kind, sender, receiver, session.digest)


def signed_part(session: Session, kind: Kind, sender: int, body: bytes) -> bytes:
  """Returns the bytes that a client signs when it sends a body to the server."""
  return _header(session, kind, sender, SERVER) + body


def pack(
  session: Session,
  kind: Kind,
  sender: int,
  receiver: int,
  body: bytes,
  identity: Identity | None = None,
) -> bytes:
  """Returns a message, signed if an identity is given (clients in active mode)."""
  content = _header(session, kind, sender, receiver) + body
  seal = primitives.digest(content) if identity is None else identity.sign(content)
  return content + seal


def unpack(session: Session, kind: Kind, sender: int, receiver: int, message: bytes) -> memoryview:
  """Returns the body of a message after checking it.

  Args:
    session: session that the message must belong to.
    kind: its required kind.
    sender: its required sender.
    receiver: its required receiver.
    message: the whole message.

  Raises:
    ProtocolError: a requirement fails, or the message is too long, cut, altered or not signed.
  """
  signed = session.active and sender != SERVER
  size = primitives.SIGNATURE_BYTES if signed else primitives.DIGEST_BYTES
  if not isinstance(message, bytes):
    raise ProtocolError(f'message must be bytes, got {type(message).__name__}.')
  room = len(message) - _HEADER.size - size
  if room < 0:
    raise ProtocolError(f'message must be whole, got {len(message)} bytes.')
  if room > _body_limit(session, kind):
    raise ProtocolError(f'message must fit a {kind.name} message, got {len(message)} bytes.')
  magic, found, source, target, digest = _HEADER.unpack_from(message)
  if magic != _MAGIC:
    raise ProtocolError('message must be one of this protocol.')
  if digest != session.digest:
    raise ProtocolError(
      'message must be of the session that both have agreed on, got one of another.'
    )
  if found != kind:
    raise ProtocolError(f'message must be of this round ({kind.name}), got kind {found}.')
  if (source, target) != (sender, receiver):
    raise ProtocolError(
      f'message must be from {sender} to {receiver}, got one that says {source} to {target}.'
    )
  content, seal = message[:-size], message[-size:]
  if signed:
    genuine = primitives.verify(session.identities[sender], seal, content)
  else:
    genuine = primitives.same(seal, primitives.digest(content))
  if not genuine:
    raise ProtocolError(f'message must be as client {sender} sent it, got one that was altered.')
  return memoryview(message)[_HEADER.size : _HEADER.size + room]


def records(body: memoryview | bytes, dtype: np.dtype) -> np.ndarray:
  """Returns the records of a body.

  Raises:
    ProtocolError: the body ends within a record.
  """
  if len(body) % dtype.itemsize:
    raise ProtocolError(f'body must be records of {dtype.itemsize} bytes, got {len(body)} bytes.')
  return np.frombuffer(body, dtype)


def ascending(ids: np.ndarray, allowed: np.ndarray) -> list[int]:
  """Returns client ids as a list.

  Raises:
    ProtocolError: the ids are not ascending and distinct, or not all among those allowed.
  """
  ids = ids.astype(np.int64)
  if (np.diff(ids) <= 0).any():
    raise ProtocolError('clients must be listed once each, in ascending order.')
  if not np.isin(ids, allowed).all():
    raise ProtocolError('clients must be known to the receiver, got one that is not.')
  listed: list[int] = ids.tolist()
  return listed


def id_list(ids: list[int]) -> bytes:
  """Returns client ids as bytes."""
  return np.array(ids, ID).tobytes()


def request(survivors: list[int], dropped: list[int], signatures: bytes) -> bytes:
  """Returns the body of a request for shares."""
  return (
    struct.pack('<II', len(survivors), len(dropped)) + id_list(survivors + dropped) + signatures
  )


def parse_request(body: memoryview) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the survivors, the dropped clients and the signature records of a request.

  Raises:
    ProtocolError: the request is shorter than its counts say, or ends within a record.
  """
  if len(body) < 8:
    raise ProtocolError('request must have its counts, got fewer bytes.')
  alive, gone = struct.unpack_from('<II', body)
  end = 8 + ID.itemsize * (alive + gone)
  if end > len(body):
    raise ProtocolError('request must be as long as it says, got fewer bytes.')
  ids = records(body[8:end], ID)
  return ids[:alive], ids[alive:], records(body[end:], SIGNATURE_RECORD)
