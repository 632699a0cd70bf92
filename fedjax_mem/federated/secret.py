"""The secret of a client's noise, and from it a fresh root of keys for each release."""

import hmac
import secrets

import numpy as np

from fedjax_mem.core import validate

REPEATABLE = 'repeatable: hides nothing from who knows the seed'


class NoiseSecret:
  """256 bits of the operating system, known to their owner alone.

  The root of a release is the HMAC-SHA256 of its number, cut to 64 bits: roots are as good as
  independent to all who do not know the secret, whatever other roots they have learned. The secret
  is shown nowhere, and cannot be copied or pickled: a copy would repeat its noise.

  Args:
    seed: None; or a seed in [0, 2**32), of which the secret is then made. The same seed gives the
      same noise again, which hides nothing from those who know it.

  Attributes:
    notes: what a statement of privacy has to say of noise from this secret.

  Raises:
    ValueError: the seed is out of range.
  """

  __slots__ = ('_key', 'notes')

  def __init__(self, seed: int | None = None):
    self.notes: tuple[str, ...] = () if seed is None else (REPEATABLE,)
    if seed is None:
      self._key = secrets.token_bytes(32)
    else:
      # A key of its own kind: no root is a key that the engine derives from the same seed.
      told = validate.seed(noise_seed=seed).to_bytes(4, 'little')
      self._key = hmac.digest(b'fedjax_mem.federated noise seed', told, 'sha256')

  def root(self, release: int) -> np.ndarray:
    """Returns the root of a release, counted from 0: key data of 64 bits, uint32 [2]."""
    told = hmac.digest(self._key, release.to_bytes(8, 'little'), 'sha256')
    return np.frombuffer(told[:8], '<u4').astype(np.uint32)

  def __reduce__(self) -> str:
    raise TypeError('a NoiseSecret must stay where it is: a copy of it would repeat its noise.')

  def __repr__(self) -> str:
    """Shows whether the noise is repeatable, and nothing else."""
    return f'NoiseSecret({", ".join(self.notes)})'
