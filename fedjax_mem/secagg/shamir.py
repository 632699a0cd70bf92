"""Shamir's t-of-n secret sharing over a prime field, of many secrets in one NumPy operation.

The field is that of p = 2 ** 31 - 1, so that products fit 64 bits. A secret of 32 bytes is split
into 11 limbs of 24 bits. Each limb is shared by its own polynomial, of which client i holds the
value at i + 1. A share of a secret is [LIMBS] numbers below p: 44 bytes. Any t - 1 shares are
uniform for every secret.

Reference: Shamir (1979), "How to share a secret".
"""

import numpy as np

from fedjax_mem.secagg import primitives
from fedjax_mem.secagg.errors import ProtocolError

PRIME = 2**31 - 1
SECRET_BYTES = 32
LIMBS = 11
SHARE_BYTES = 4 * LIMBS
_LIMB_BITS = 24


def _limbs(secrets: list[bytes]) -> np.ndarray:
  """Returns the limbs of secrets of 32 bytes, [S, LIMBS]."""
  # A zero byte makes 33 bytes of each secret: 11 limbs of 3 bytes, little-endian.
  padded = b''.join(secret + b'\0' for secret in secrets)
  parts = np.frombuffer(padded, np.uint8).reshape(len(secrets), LIMBS, 3).astype(np.uint64)
  limbs: np.ndarray = parts[..., 0] | parts[..., 1] << np.uint64(8) | parts[..., 2] << np.uint64(16)
  return limbs


def _uniform(*shape: int) -> np.ndarray:
  """Returns secret uniform numbers below p in a given shape, by rejection sampling."""
  count = int(np.prod(shape))
  values = np.zeros(0, np.uint64)
  while values.size < count:
    drawn = np.frombuffer(primitives.random_bytes(4 * (count - values.size)), np.uint32)
    # p has 31 bits: masked draws are uniform in [0, p], and p itself is rejected.
    drawn = drawn & np.uint32(PRIME)
    values = np.concatenate([values, drawn[drawn < PRIME].astype(np.uint64)])
  return values.reshape(shape)


def split(secrets: list[bytes], threshold: int, holders: np.ndarray) -> np.ndarray:
  """Returns the shares of secrets, uint32 [H, S, LIMBS]; any `threshold` of the H restore them.

  Args:
    secrets: S secrets of 32 bytes each.
    threshold: t, number of shares that restore a secret, at least 1 and at most H.
    holders: [H] ids of the clients that hold a share, distinct, each in [0, p - 1).

  Raises:
    ProtocolError: a holder occurs twice or is out of range, or there are fewer than the threshold.
  """
  points = _points(holders)
  if not 1 <= threshold <= len(points):
    raise ProtocolError(f'threshold must be in [1, {len(points)}], got {threshold!r}.')
  coefficients = _uniform(threshold, len(secrets), LIMBS)
  coefficients[0] = _limbs(secrets)
  x = points[:, None, None]
  values = np.zeros((len(points), len(secrets), LIMBS), np.uint64)
  for row in coefficients[::-1]:  # Horner's rule, for all holders and limbs at once
    values = (values * x + row) % PRIME
  return values.astype(np.uint32)


def restore(holders: np.ndarray, shares: np.ndarray) -> list[bytes]:
  """Returns the S secrets of 32 bytes that the shares restore.

  Args:
    holders: [t] ids of the clients that held the shares.
    shares: uint32 [t, S, LIMBS].

  Raises:
    ProtocolError: a holder occurs twice or is out of range, a share is not in the field, or the
      shares do not belong together.
  """
  weights = lagrange_at_zero(_points(holders))
  if shares.shape[:1] + shares.shape[2:] != (len(weights), LIMBS):
    raise ProtocolError(f'shares must be [{len(weights)}, S, {LIMBS}], got {shares.shape!r}.')
  values = np.asarray(shares).astype(np.uint64)
  if (values >= PRIME).any():
    raise ProtocolError('a share must be a number of the field, got one that is out of range.')
  # Each summand is below 2 ** 31 and there are at most 2 ** 20 of them: the sum fits 64 bits.
  limbs = (values * weights[:, None, None] % PRIME).sum(0) % PRIME
  # Shares that do not belong together give uniform limbs, which hardly all have 24 bits.
  if (limbs >> np.uint64(_LIMB_BITS)).any() or (limbs[:, -1] >> np.uint64(16)).any():
    raise ProtocolError('shares must be of the same secrets, got some that do not fit together.')
  parts = limbs[..., None] >> np.array([0, 8, 16], np.uint64) & np.uint64(255)
  flat = parts.astype(np.uint8).reshape(len(limbs), 3 * LIMBS)[:, :SECRET_BYTES]
  return [row.tobytes() for row in flat]


def _points(holders: np.ndarray) -> np.ndarray:
  """Returns the evaluation points of the holders' shares, [H]; never 0, the point of the secret."""
  points = np.asarray(holders, np.int64) + 1
  if points.ndim != 1 or not points.size:
    raise ProtocolError(f'holders must be a list of clients, got shape {points.shape!r}.')
  if points.min() < 1 or points.max() >= PRIME:
    raise ProtocolError(f'holders must be in [0, {PRIME - 1}), got one that is out of range.')
  if np.unique(points).size < points.size:
    raise ProtocolError('holders must be distinct, got one twice.')
  return points.astype(np.uint64)


def lagrange_at_zero(points: np.ndarray) -> np.ndarray:
  """Returns the Lagrange weights [t] by which values at distinct points give the value at zero."""
  x = points.astype(np.uint64)
  # The weight of point i is the product of x_j / (x_j - x_i) over all other points j. Adding p
  # keeps the unsigned difference from wrapping around.
  gaps = (x[None, :] + np.uint64(PRIME) - x[:, None]) % PRIME
  np.fill_diagonal(gaps, 1)
  others = np.broadcast_to(x, gaps.shape).copy()
  np.fill_diagonal(others, 1)
  weights: np.ndarray = _product(others) * _inverse(_product(gaps)) % PRIME
  return weights


def _product(factors: np.ndarray) -> np.ndarray:
  """Returns the products modulo p along the last axis."""
  # Pairwise products: log2(t) NumPy operations instead of t.
  while factors.shape[-1] > 1:
    if factors.shape[-1] % 2:
      ones = np.ones((*factors.shape[:-1], 1), np.uint64)
      factors = np.concatenate([factors, ones], axis=-1)
    factors = factors[..., ::2] * factors[..., 1::2] % PRIME
  return factors[..., 0]


def _inverse(values: np.ndarray) -> np.ndarray:
  """Returns the inverses modulo p, by Fermat's little theorem: x ** (p - 2)."""
  result = np.ones_like(values)
  for bit in bin(PRIME - 2)[2:]:
    result = result * result % PRIME
    if bit == '1':
      result = result * values % PRIME
  return result
