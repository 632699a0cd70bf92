"""The primitives of the protocol, all from `cryptography`: agreement, boxes, signatures, masks.

- keys are agreed by X25519 and derived by HKDF-SHA256, with a label, the session and both parties;
- a box is ChaCha20-Poly1305 under a key of its own for each session and direction, used once;
- identities sign by Ed25519;
- masks are AES-256 in counter mode under a key of their own for each session and pair.

Nothing here prints a key: the classes of `cryptography` do not, and ours name only what is public.
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
# What is expanded at a time: mask, zeros and sum stay in a core's cache.
_CHUNK = 1 << 18
_ZEROS = bytes(_CHUNK)
# Ciphers that are open at a time.
_OPEN = 256
_FIELD = 2**255 - 19


def random_bytes(count: int) -> bytes:
  """Returns so many secret random bytes, from the operating system."""
  return os.urandom(count)


def digest(*parts: bytes) -> bytes:
  """Returns the SHA-256 of parts, each preceded by its length, 32 bytes."""
  state = hashlib.sha256()
  for part in parts:
    state.update(len(part).to_bytes(8, 'little'))
    state.update(part)
  return state.digest()


def same(a: bytes, b: bytes) -> bool:
  """Returns whether two byte strings are equal, in a time that does not depend on where not."""
  return hmac.compare_digest(a, b)


class Pair:
  """A key pair of X25519, made for one session."""

  def __init__(self, secret: bytes | None = None):
    """Makes a fresh pair, or the pair of a secret of 32 bytes that was restored."""
    self.secret = random_bytes(KEY_BYTES) if secret is None else secret
    self._private = X25519PrivateKey.from_private_bytes(self.secret)
    self.public = self._private.public_key().public_bytes_raw()

  def __repr__(self) -> str:
    """Names the public half only."""
    return f'Pair(public={self.public.hex()})'

  def agree(self, peer: bytes, *info: bytes) -> bytes:
    """Returns the key of 32 bytes shared with a peer, bound to `info`.

    Args:
      peer: the peer's public key, 32 bytes.
      *info: what the key is for: a label, the session, the parties.

    Raises:
      ProtocolError: the peer's key is no canonical point, or one of low order.
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
  """A key of ChaCha20-Poly1305 that seals one message: a second would repeat the nonce."""

  def __init__(self, key: bytes):
    """Makes the box of a key of 32 bytes, derived for one session and one direction."""
    self._cipher: ChaCha20Poly1305 | None = ChaCha20Poly1305(key)

  def __repr__(self) -> str:
    """Says only whether it was used."""
    return f'Box(used={self._cipher is None})'

  def seal(self, text: bytes, bound: bytes) -> bytes:
    """Returns the text encrypted, bound to public bytes; once.

    Raises:
      ProtocolError: the box has sealed a message before.
    """
    if self._cipher is None:
      raise ProtocolError('a box must seal one message: a second would reuse its nonce.')
    cipher, self._cipher = self._cipher, None
    return cipher.encrypt(bytes(12), text, bound)


def unseal(key: bytes, box: bytes, bound: bytes) -> bytes:
  """Returns the text of a box.

  Raises:
    ProtocolError: the box was altered, or is not of this key and these public bytes.
  """
  try:
    return ChaCha20Poly1305(key).decrypt(bytes(12), box, bound)
  except InvalidTag as error:
    raise ProtocolError('a box must be as its sender sealed it, got one that is not.') from error


class Identity:
  """A client's Ed25519 identity; its public half is known to all before the session."""

  def __init__(self, secret: bytes | None = None):
    """Makes a fresh identity, or that of a secret of 32 bytes kept by the client."""
    seed = random_bytes(KEY_BYTES) if secret is None else secret
    self._private = Ed25519PrivateKey.from_private_bytes(seed)
    self.public = self._private.public_key().public_bytes_raw()

  def __repr__(self) -> str:
    """Names the public half only."""
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
  """Adds the masks of some keys to integers modulo 2 ** b, and takes those of others away.

  Args:
    total: [D] of an unsigned dtype of b bits, contiguous; changed in place.
    plus: keys of 32 bytes, each of one mask.
    minus: keys of 32 bytes, each of one mask.
  """
  signed = [(np.add, key) for key in plus] + [(np.subtract, key) for key in minus]
  buffer = np.empty(_CHUNK, np.uint8)
  out, words = buffer.data, buffer.view(total.dtype.newbyteorder('<'))
  step = len(words)
  for first in range(0, len(signed), _OPEN):
    streams = [(ufunc, _stream(key)) for ufunc, key in signed[first : first + _OPEN]]
    for start in range(0, len(total), step):
      part = total[start : start + step]
      zeros = _ZEROS if len(part) == step else _ZEROS[: part.nbytes]
      for ufunc, stream in streams:
        stream.update_into(zeros, out)
        ufunc(part, words[: len(part)], out=part)


def _stream(key: bytes) -> CipherContext:
  return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
