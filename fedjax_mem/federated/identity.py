"""Identities of clients: Ed25519 signatures of updates, and the server's register of keys."""

import struct
from typing import Any

PUBLIC_BYTES = 32
_DOMAIN = b'fedjax_mem.federated update 1'


class Unauthentic(ValueError):
  """An update that is unsigned, replayed, stale, tampered with or of an unknown client."""


class SigningKey:
  """A fresh Ed25519 key pair of a client; the private key never leaves the object."""

  def __init__(self) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    self._key = ed25519.Ed25519PrivateKey.generate()

  @property
  def public(self) -> bytes:
    """The public key, 32 bytes."""
    return self._key.public_key().public_bytes_raw()

  def sign(self, said: bytes) -> bytes:
    """Returns the signature of the bytes `said`, 64 bytes."""
    return self._key.sign(said)

  def __repr__(self) -> str:
    """Shows the public key only."""
    return f'SigningKey(public={self.public.hex()})'


def statement(
  run_id: str, client_id: str, round: int, model_hash: bytes, data: bytes, metadata: bytes
) -> bytes:
  """Returns the bytes to sign: each field after its length, so that distinct fields differ."""
  fields = (_DOMAIN, run_id.encode(), client_id.encode(), struct.pack('<q', round))
  return b''.join(struct.pack('<Q', len(x)) + x for x in (*fields, model_hash, data, metadata))


class Register:
  """The enrolled public keys by client id; the key of an id never changes."""

  def __init__(self) -> None:
    self._keys: dict[str, bytes] = {}

  def __contains__(self, client_id: object) -> bool:
    return client_id in self._keys

  def enrol(self, client_id: str, public_key: bytes) -> None:
    """Enrols the key of a client.

    Raises:
      ValueError: the key is not of 32 bytes, or the id has another key already.
    """
    if not isinstance(public_key, bytes) or len(public_key) != PUBLIC_BYTES:
      raise ValueError(f'public_key must be {PUBLIC_BYTES} bytes, got {public_key!r}.')
    if self._keys.setdefault(client_id, public_key) != public_key:
      raise ValueError(
        f'client_id must be distinct, got {client_id!r}, which is enrolled with another key.'
      )

  def check(self, client_id: str, said: bytes, signature: Any) -> None:
    """Raises `Unauthentic` unless the client is enrolled and its key signed the bytes `said`."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ed25519

    if client_id not in self._keys:
      raise Unauthentic('unknown client: it must be enrolled first')
    if not signature:
      raise Unauthentic('unsigned')
    key = ed25519.Ed25519PublicKey.from_public_bytes(self._keys[client_id])
    try:
      key.verify(signature, said)
    except (InvalidSignature, TypeError) as error:
      raise Unauthentic('tampered with: the signature does not match') from error
