"""Correlated noise by matrix factorisation (DP-MF): C^-1 Z instead of Z, streamed row by row.

Z has independent Gaussian rows, one a round. The sums plus C^-1 Z are post-processing of C (sums)
+ Z, a Gaussian mechanism on the encoded sums. The noise of a round cancels part of the noise of
earlier rounds, so that prefix sums, which training accumulates, contain less noise.

Formal guarantee: for each number of rounds, the L2 sensitivity of the encoded contributions of one
client of bound 1 is computed, over every participation pattern with at least `separation` rounds
between two participations; the sampler must enforce the separation. After those rounds nothing is
guaranteed, so the noise is NaN and the run stops.

Rows of Z come from the round's key and the state is arrays only, so a resumed run continues bit for
bit. The matrices are those of jax_privacy, optimised in float64 and applied in float32.

References: Choquette-Choo et al. (2023), arXiv 2306.08153 (banded, Algorithm 9); Dvijotham et al.
(2024), arXiv 2404.16706 and McMahan, Xu, Zhang (2024), arXiv 2408.08868 (BLT, Algorithm 3);
Kalinin and Lampert (2024), arXiv 2405.13763, Theorem 2 (sensitivity of Toeplitz matrices); McKenna
(2024), arXiv 2405.15913 (what Toeplitz matrices cost).
"""

import contextlib
import dataclasses
import functools
import itertools
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import tree, validate
from fedjax_mem.core.bound import Bound
from fedjax_mem.core.mechanism import Mechanism

STRATEGIES = ('banded', 'blt')


@dataclasses.dataclass(frozen=True)
class Matrix(Mechanism):
  """Noise C^-1 Z; `noise_multiplier` is the standard deviation of Z over the L2 bound.

  All rounds together cost one Gaussian release, with the sensitivity of the rounds that ran:

  >>> apart = fm.Draws('cyclic', population=80, expected=10, capacity=10, min_sep=8)
  >>> mechanism = Matrix(2.0, sensitivities=(0.9, 1.0), separation=8, width=2)
  >>> [round(fm.account.epsilon(apart, mechanism, r, 1e-5).epsilon, 2) for r in (1, 2)]
  [1.77, 1.99]

  State: `done` (rounds so far) and `matrix`, the stream's arrays for D values.

  Attributes:
    sensitivities: for each r, the L2 sensitivity of the encoded contributions of one client of
      bound 1 in the first r rounds (never decreasing). Further rounds are not covered.
    separation: the least number of rounds between two participations of a client that
      `sensitivities` assumes.
    strategy: the kind of C, 'banded' or 'blt'.
    width: number of bands of 'banded', of buffers of 'blt'.
  """

  correlated = True
  doubled_by = ('pld',)
  sensitivities: tuple[float, ...] = ()
  separation: int = 1
  strategy: str = 'banded'
  width: int = 1

  def __post_init__(self) -> None:
    """Stores the sensitivities as a tuple; raises `ValueError` if they are missing or decrease."""
    super().__post_init__()
    validate.integer(separation=self.separation)
    validate.one_of(STRATEGIES, strategy=self.strategy)
    validate.integer(width=self.width)
    values = tuple(float(s) for s in self.sensitivities)
    object.__setattr__(self, 'sensitivities', values)
    if not (values and values[0] > 0 and all(a <= b for a, b in itertools.pairwise(values))):
      raise ValueError(
        'sensitivities must be numbers > 0 that never decrease, one for each round, '
        f'got {values[:4]!r}{"…" if len(values) > 4 else ""}.'
      )

  @property
  def min_sep(self) -> int:
    """The least number of rounds between two participations of a client that it assumes."""
    return self.separation

  def horizon(self, draws: Any) -> int | None:
    """Returns the number of rounds that its matrix covers."""
    del draws
    return len(self.sensitivities)

  def event(
    self,
    draws: Any,
    adjacency: str,
    accountant: str,
    rounds: int,
    bound: Bound | None = None,
    truncated: bool = False,
  ) -> Any:
    """Returns one Gaussian event for all rounds: the noise is drawn once, for the whole matrix.

    Raises:
      ValueError: more rounds, or more participations, than are covered.
    """
    import dp_accounting

    kept = 1 if draws is None else draws.min_sep
    if self.separation > kept:
      raise ValueError(
        f'its sensitivities assume {self.separation} rounds between two participations of a '
        f'client, the sampler keeps {kept}'
      )
    if rounds > len(self.sensitivities):
      raise ValueError(
        f'its matrix covers {len(self.sensitivities)} rounds, and {rounds} are asked for'
      )
    multiplier = self.noise_multiplier / self.moves(adjacency, accountant)
    return dp_accounting.GaussianDpEvent(multiplier / self.sensitivities[rounds - 1])

  def check(self, bound: Bound, like: Any) -> None:
    """Raises `ValueError` where the matrix that is drawn is not the one that is accounted for."""
    del bound, like
    if self.strategy == 'banded' and self.width > self.separation:
      raise ValueError(
        f'width must be at most the separation of {self.separation}, so that the columns of one '
        f'client do not overlap, got {self.width!r}.'
      )
    found = self._strategy().sensitivities
    if not np.allclose(found, self.sensitivities, rtol=1e-6):
      raise ValueError(
        f'sensitivities must be those of the {self.strategy!r} matrix of width {self.width}, '
        f'{found[:4].tolist()!r}…, got {self.sensitivities[:4]!r}….'
      )

  def _strategy(self) -> 'Strategy':
    make = banded if self.strategy == 'banded' else blt
    with jax.ensure_compile_time_eval():  # this may run while a round is traced
      return make(len(self.sensitivities), self.width, self.separation)

  def init(self, like: Any) -> Any:
    """Returns the state before the first round."""
    flat = jax.ShapeDtypeStruct((tree.size(like),), jnp.float32)
    return {'done': jnp.int32(0), 'matrix': self._strategy().inverse.init_multiply(flat)}

  def draw(self, key: Any, like: Any, bound: Bound, state: Any) -> tuple[Any, Any]:
    """Returns (this round's row of C^-1 Z, state)."""
    from fedjax_mem.kernels.random import noise

    size = jax.ShapeDtypeStruct((tree.size(like),), jnp.float32)
    row = noise.gaussian(key, size, self.noise_multiplier * bound.l2)
    with _ordinary(), jax.default_matmul_precision('highest'):
      row, matrix = self._strategy().inverse.multiply_next(row, state['matrix'])
    row = jnp.where(state['done'] < len(self.sensitivities), row, jnp.float32(jnp.nan))
    floats = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), like)
    return tree.unravel(row, floats), {'done': state['done'] + 1, 'matrix': matrix}


class Strategy(NamedTuple):
  """The inverse of a strategy matrix C as a stream, and the sensitivities of C.

  Attributes:
    inverse: a jax_privacy `StreamingMatrix`: rows z -> rows of C^-1 Z.
    sensitivities: [rounds] float64, for each r the L2 sensitivity in the first r rounds.
  """

  inverse: Any
  sensitivities: np.ndarray


def _library() -> types.ModuleType:
  """Returns jax_privacy's matrices, imported on first use since that takes seconds."""
  try:
    from jax_privacy import matrix_factorization as matrices
  except ImportError as error:
    raise ValueError(
      f'jax_privacy must be installed for correlated noise (pip install "fedjax_mem[privacy]"), '
      f'got: {error}.'
    ) from error
  library: types.ModuleType = matrices
  return library


@contextlib.contextmanager
def _ordinary() -> Iterator[None]:
  """Runs the library under jax's default promotion rules, which the caller may have changed."""
  with jax.numpy_dtype_promotion('standard'), jax.numpy_rank_promotion('allow'):
    yield


@functools.lru_cache(maxsize=8)
def banded(rounds: int, bands: int, separation: int) -> Strategy:
  """Returns a column-normalised banded strategy, optimised for the mean error of prefix sums.

  It is optimised as a Toeplitz matrix, which takes seconds, then normalised. That costs less than
  0.5% of the error from 1,000 rounds on (McKenna 2024), more in short runs: beside jax_privacy's
  optimizer of all entries, over 8 to 128 rounds and 2 to 32 bands, the root mean squared error of a
  prefix sum is larger by 0.2% to 1.7%; by 1.6% at 32 rounds, and most at 64 and 128 of 32 bands.

  Args:
    rounds: size of the matrix.
    bands: at most `separation`, so that the columns of one client's rounds do not overlap.
    separation: rounds between two participations.
  """
  library = _library()
  with _ordinary(), jax.enable_x64():
    coefficients = library.toeplitz.optimize_banded_toeplitz(rounds, bands)
    found = library.banded.ColumnNormalizedBanded.from_banded_toeplitz(rounds, coefficients)
    params = np.asarray(found.params, np.float32)
  inverse = library.banded.ColumnNormalizedBanded(params=jnp.asarray(params))
  columns = params.astype(np.float64)
  columns /= np.linalg.norm(columns, axis=1, keepdims=True)
  return Strategy(inverse.inverse_as_streaming_matrix(), banded_sensitivities(columns, separation))


@functools.lru_cache(maxsize=8)
def blt(rounds: int, buffers: int, separation: int) -> Strategy:
  """Returns a buffered linear Toeplitz strategy, optimised for the largest error of a prefix sum.

  Args:
    rounds: size of the matrix.
    buffers: arrays of the state.
    separation: rounds between two participations.
  """
  library = _library().buffered_toeplitz
  with _ordinary(), jax.enable_x64():
    found = library.optimize(
      n=rounds,
      min_sep=separation,
      max_participations=None,
      min_buffers=buffers,
      max_buffers=buffers,
    )
    decay, scale = (np.asarray(x, np.float32) for x in (found.buf_decay, found.output_scale))
  matrix = library.BufferedToeplitz(buf_decay=jnp.asarray(decay), output_scale=jnp.asarray(scale))
  powers = decay.astype(np.float64) ** np.arange(rounds - 1)[:, None]
  column = np.append(1.0, powers @ scale.astype(np.float64))
  return Strategy(matrix.inverse_as_streaming_matrix(), toeplitz_sensitivities(column, separation))


def banded_sensitivities(columns: np.ndarray, separation: int) -> np.ndarray:
  """Returns the L2 sensitivity in the first r rounds, r = 1 … n, of a banded matrix, [n].

  Columns `separation` >= bands apart do not overlap, so a pattern's squared sensitivity is the sum
  of its columns' squared norms, cut at row r; the largest sum is found by dynamic programming.

  Args:
    columns: [n, bands] float64, column i from the diagonal down.
    separation: rounds between two participations, >= bands.
  """
  n, bands = columns.shape
  heads = np.cumsum(columns**2, axis=1)  # of column i, its first 1 … bands entries
  best = np.zeros(n + 1)  # best[r]: patterns in the first r rounds, columns not cut
  for r in range(1, n + 1):
    best[r] = max(best[r - 1], heads[r - 1, -1] + best[max(0, r - separation)])
  squared = np.empty(n)
  for r in range(1, n + 1):
    last = np.arange(max(0, r - bands), r)  # the last column of the pattern, cut or not
    cut = heads[last, r - 1 - last] + best[np.maximum(0, last + 1 - separation)]
    squared[r - 1] = max(cut.max(), best[max(0, r - bands)])
  return np.sqrt(squared)


def toeplitz_sensitivities(column: np.ndarray, separation: int) -> np.ndarray:
  """Returns the L2 sensitivity in the first r rounds, r = 1 … n, of a Toeplitz matrix, [n].

  With coefficients >= 0 that do not increase, no pattern is worse than rounds 0, separation,
  2 separation, … (Kalinin and Lampert 2024, Theorem 2).

  Args:
    column: [n] float64, the first column.
    separation: rounds between two participations.

  Raises:
    ValueError: a coefficient is negative or larger than the one before.
  """
  if (column < 0).any() or (np.diff(column) > 0).any():
    raise ValueError(
      f'column must be coefficients >= 0 that do not increase, got {column[:4]!r}…; choose other '
      'rounds, or fewer buffers.'
    )
  total = np.zeros_like(column)
  for first in range(0, len(column), separation):
    total[first:] += column[: len(column) - first]
  norms: np.ndarray = np.sqrt(np.cumsum(total**2))
  return norms
