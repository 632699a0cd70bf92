"""The cryptographic primitives, all from `cryptography`: key agreement, boxes, signatures, masks.

- Keys are agreed by X25519 and derived by HKDF-SHA256 from a label, the session and both parties.
- A box is a ChaCha20-Poly1305 ciphertext. Each session and direction has its own key, used once.
- Identities sign by Ed25519.
- Masks are AES-256 in counter mode. Each session and pair has its own key.

No secret key is ever printed: the classes of `cryptography` show none, and ours show public keys.
"""

import hashlib
import hmac
import os

import numpy as np
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedjax_mem.secagg.errors import ProtocolError

KEY_BYTES = 32
TAG_BYTES = 16
SIGNATURE_BYTES = 64
DIGEST_BYTES = 32
# Bytes of a mask that are expanded at a time: mask, zeros and sum then stay in a core's cache.
_CHUNK = 1 << 18
_ZEROS = bytes(_CHUNK)
# Number of ciphers that are open at a time, to limit memory.
_OPEN = 256
_FIELD = 2**255 - 19


def random_bytes(count: int) -> bytes:
  """Returns `count` secret random bytes from the operating system."""
  return os.urandom(count)


def digest(*parts: bytes) -> bytes:
  """Returns the SHA-256 of parts, each preceded by its length, 32 bytes."""
  state = hashlib.sha256()
  for part in parts:
    state.update(len(part).to_bytes(8, 'little'))
    state.update(part)
  return state.digest()


def same(a: bytes, b: bytes) -> bool:
  """Returns whether two byte strings are equal, in a time that does not depend on their values."""
  return hmac.compare_digest(a, b)


class Pair:
  """An X25519 key pair, used in one session."""

  def __init__(self, secret: bytes | None = None):
    """Makes a fresh pair, or the pair of a restored secret of 32 bytes."""
    self.secret = random_bytes(KEY_BYTES) if secret is None else secret
    self._private = X25519PrivateKey.from_private_bytes(self.secret)
    self.public = self._private.public_key().public_bytes_raw()

  def __repr__(self) -> str:
    """Shows the public key only."""
    return f'Pair(public={self.public.hex()})'

  def agree(self, peer: bytes, *info: bytes) -> bytes:
    """Returns the key of 32 bytes shared with a peer, bound to `info`.

    Args:
      peer: the peer's public key, 32 bytes.
      *info: the purpose of the key: a label, the session, the parties.

    Raises:
      ProtocolError: the peer's key is not a canonical point, or is of low order.
    """
    if len(peer) != KEY_BYTES or int.from_bytes(peer, 'little') >= _FIELD:
      raise ProtocolError('a public key must be the canonical 32 bytes of a point.')
    try:
      shared = self._private.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:
      raise ProtocolError('a public key must not be a point of low order.') from error
    return derive(shared, *info, *sorted((self.public, peer)))


def derive(secret: bytes, *info: bytes) -> bytes:
  """Returns a key of 32 bytes from a secret, by HKDF-SHA256, bound to `info`."""
  return HKDF(hashes.SHA256(), KEY_BYTES, salt=None, info=digest(*info)).derive(secret)


class Box:
  """A ChaCha20-Poly1305 key that encrypts one message only: a second would repeat the nonce."""

  def __init__(self, key: bytes):
    """Makes the box from a key of 32 bytes, derived for one session and one direction."""
    self._cipher: ChaCha20Poly1305 | None = ChaCha20Poly1305(key)

  def __repr__(self) -> str:
    """Shows only whether it was used."""
    return f'Box(used={self._cipher is None})'

  def seal(self, text: bytes, bound: bytes) -> bytes:
    """Returns the encrypted text, bound to public bytes; may be called once.

    Raises:
      ProtocolError: the box has encrypted a message before.
    """
    if self._cipher is None:
      raise ProtocolError('a box must seal one message: a second would reuse its nonce.')
    cipher, self._cipher = self._cipher, None
    return cipher.encrypt(bytes(12), text, bound)


def unseal(key: bytes, box: bytes, bound: bytes) -> bytes:
  """Returns the decrypted text of a box.

  Raises:
    ProtocolError: the box was altered, or made with another key or other public bytes.
  """
  try:
    return ChaCha20Poly1305(key).decrypt(bytes(12), box, bound)
  except InvalidTag as error:
    raise ProtocolError('a box must be as its sender sealed it, got one that is not.') from error


class Identity:
  """A client's Ed25519 identity; all parties know its public key before the session."""

  def __init__(self, secret: bytes | None = None):
    """Makes a fresh identity, or the one of a secret of 32 bytes that the client has kept."""
    seed = random_bytes(KEY_BYTES) if secret is None else secret
    self._private = Ed25519PrivateKey.from_private_bytes(seed)
    self.public = self._private.public_key().public_bytes_raw()

  def __repr__(self) -> str:
    """Shows the public key only."""
    return f'Identity(public={self.public.hex()})'

  def sign(self, message: bytes) -> bytes:
    """Returns the signature of a message, 64 bytes."""
    return self._private.sign(_signed(message))


def verify(identity: bytes, signature: bytes, message: bytes) -> bool:
  """Returns whether the identity signed the message."""
  try:
    Ed25519PublicKey.from_public_bytes(identity).verify(signature, _signed(message))
  except (InvalidSignature, ValueError):
    return False
  return True


def _signed(message: bytes) -> bytes:
  return b'fedjax_mem secure message' + hashlib.sha256(message).digest()


def add_masks(total: np.ndarray, plus: list[bytes], minus: list[bytes]) -> None:
  """Adds masks to integers modulo 2 ** b, and subtracts others, in place.

  Args:
    total: [D] of an unsigned dtype of b bits, contiguous; changed in place.
    plus: keys of 32 bytes of the masks to add.
    minus: keys of 32 bytes of the masks to subtract.
  """
  signed = [(np.add, key) for key in plus] + [(np.subtract, key) for key in minus]
  buffer = np.empty(_CHUNK, np.uint8)
  out, words = buffer.data, buffer.view(total.dtype.newbyteorder('<'))
  step = len(words)
  # All masks are added to a part of the sum while it is in the cache, then the next part follows.
  for first in range(0, len(signed), _OPEN):
    streams = [(ufunc, _stream(key)) for ufunc, key in signed[first : first + _OPEN]]
    for start in range(0, len(total), step):
      part = total[start : start + step]
      zeros = _ZEROS if len(part) == step else _ZEROS[: part.nbytes]
      for ufunc, stream in streams:
        stream.update_into(zeros, out)  # zeros encrypted in counter mode are the key stream
        ufunc(part, words[: len(part)], out=part)


def _stream(key: bytes) -> CipherContext:
  return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
