"""Correlated noise by matrix factorisation (DP-MF) as a layer; see `mechanisms/matrix.py`.

References: Choquette-Choo et al. (2023), arXiv 2306.08153; McMahan, Xu, Zhang (2024), arXiv
2408.08868.
"""

from fedjax_mem.core import Layer, validate
from fedjax_mem.mechanisms import Matrix, matrix
from fedjax_mem.stages.privacy import _base as kit


def matrix_factorization(
  l2_clip_norm: float,
  noise_multiplier: float,
  rounds: int,
  *,
  separation: int = 1,
  strategy: str = 'banded',
  bands: int | None = None,
  buffers: int = 3,
) -> Layer:
  """Returns the layer that clips each update and adds correlated noise to the sums.

  Server state: that of `mechanisms.Matrix`, the stream's arrays for D values.

  >>> noise = matrix_factorization(1.0, 0.5, rounds=8, separation=4).fact(fm.Noises).mechanism
  >>> noise.strategy, noise.width, noise.min_sep
  ('banded', 4, 4)

  Args:
    l2_clip_norm: bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: standard deviation of Z over the bound, > 0; the accountant divides it by the
      strategy's sensitivity.
    rounds: rounds of the whole run, >= 1.
    separation: least number of rounds between two participations of a client, >= 1; at most the
      sampler's min_sep.
    strategy: 'banded' (state of `bands` arrays; in short runs up to 1.7% more error than the best
      banded matrix, see `mechanisms.matrix.banded`) or 'blt' (state of `buffers` arrays).
    bands: only for 'banded', 1 to min(separation, rounds); default: that maximum, but at most 32.
    buffers: only for 'blt', 1 to 10.

  Raises:
    ValueError: an argument is out of range, or jax_privacy is not installed.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  validate.positive(noise_multiplier=noise_multiplier)
  width = _width(rounds, separation, strategy, bands, buffers)
  make = matrix.banded if strategy == 'banded' else matrix.blt
  known = make(rounds, width, separation).sensitivities.tolist()
  made = Matrix(noise_multiplier, tuple(known), separation, strategy, width)
  return kit.clip_and_release('matrix_factorization', l2_clip_norm, made)


def _width(rounds: int, separation: int, strategy: str, bands: int | None, buffers: int) -> int:
  """Returns the number of bands or buffers, from the factory's arguments; raises `ValueError`."""
  validate.integer(rounds=rounds)
  validate.integer(separation=separation)
  validate.one_of(matrix.STRATEGIES, strategy=strategy)
  most = min(separation, rounds)
  width = min(most, 32) if bands is None else validate.integer(at_most=most, bands=bands)
  validate.integer(at_most=10, buffers=buffers)
  return width if strategy == 'banded' else buffers
