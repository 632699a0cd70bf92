"""Low-rank approximation of a matrix by one power iteration: PowerSGD.

With Q from the last round (warm start), P = orthonormal(M Q), Q' = Mᵀ P, and M ~ P Q'ᵀ is the
projection of M on the span of P: biased, but never larger than M, so the error feedback that must
go with it contracts. The error's norm is at most that of M; over rounds of a fixed M the span
converges to that of the leading singular vectors. In the paper's all-reduce form the clients'
M Q and Mᵀ P are summed before each use (both are linear in M); `project`, `orthonormal` and `back`
are the pieces of it.

Edge cases:

- M = 0, or of a rank below r: columns of P that nothing is left for are zero, as are those of Q'
- NaN or infinity in M: P and Q' hold NaN

Reference: Vogels, Karimireddy, Jaggi (2019), arXiv 1905.13727, Algorithm 1.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import validate

# A column that shrinks below this share of itself when projected is rounding errors.
DEPENDENT = 1e-5


def start(key: jax.Array, columns: int, rank: int) -> jax.Array:
  """Returns a first Q [columns, rank], standard normal.

  Args:
    key: used for nothing else.
    columns: B, of the matrices [A, B] to approximate.
    rank: R, at least 1.

  Raises:
    ValueError: columns or rank is below 1.
  """
  validate.integer(columns=columns)
  validate.integer(rank=rank)
  return jax.random.normal(key, (columns, rank), jnp.float32)


@jax.jit
def orthonormal(p: jax.Array) -> jax.Array:
  """Returns p [A, R] with orthonormal columns of the same span, by Gram-Schmidt done twice.

  Columns that depend on those before them become zero. The columns' scale does not matter.

  >>> orthonormal(jnp.array([[2.0, 1.0, 4.0], [0.0, 3.0, 1.0]])).tolist()
  [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]

  Reference: Giraud, Langou, Rozloznik (2005): twice is enough.

  Args:
    p: [A, R] floats.
  """
  p = p.astype(jnp.float32)

  def product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision='highest')

  def step(i: jax.Array, basis: jax.Array) -> jax.Array:
    column = basis[:, i]
    basis = basis.at[:, i].set(0)
    largest = jnp.max(jnp.abs(column), initial=0)
    column = column / jnp.where(largest == 0, jnp.float32(1), largest)
    before = jnp.sqrt(jnp.sum(jnp.square(column)))
    # Only the columns before i are orthonormal: the coefficients of the others are dropped.
    # The product with all columns has a static shape; one with the first i would not.
    done = jnp.arange(p.shape[1]) < i
    # Twice: what rounding leaves of the earlier columns the first time, the second time removes.
    for _ in range(2):
      parts = jnp.where(done, product(basis.T, column), jnp.float32(0))
      column = column - product(basis, parts)
    norm = jnp.sqrt(jnp.sum(jnp.square(column)))
    gone = norm <= DEPENDENT * before
    unit = column / jnp.where(gone, jnp.float32(1), norm)
    return basis.at[:, i].set(jnp.where(gone, jnp.float32(0), unit))

  basis: jax.Array = jax.lax.fori_loop(0, p.shape[1], step, p)
  return basis


def project(m: jax.Array, q: jax.Array) -> jax.Array:
  """Returns M Q [A, R], float32.

  Args:
    m: [A, B] floats.
    q: [B, R] floats.
  """
  return jnp.matmul(m.astype(jnp.float32), q.astype(jnp.float32), precision='highest')


def encode(m: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (P [A, R] orthonormal, Q' [B, R]), float32, after one power iteration.

  Args:
    m: [A, B] floats.
    q: [B, R], from `start` or the last round (`warm`), R at most min(A, B).

  Raises:
    ValueError: the shapes do not fit, or the rank is larger than M's can be.
  """
  if m.ndim != 2 or q.ndim != 2 or m.shape[1] != q.shape[0]:
    raise ValueError(f'q must be [B, R] for m [A, B] of shape {m.shape!r}, got {q.shape!r}.')
  validate.integer(rank=q.shape[1], at_most=min(m.shape))
  p = orthonormal(project(m, q))
  return p, back(m, p)


def back(m: jax.Array, p: jax.Array) -> jax.Array:
  """Returns Mᵀ P [..., B, R], float32.

  Args:
    m: [..., A, B] floats.
    p: [A, R] floats.
  """
  # In this order M is read row by row: on a CPU ten times as fast as a product with its transpose,
  # to which XLA would turn a transpose of the result.
  rows = jnp.matmul(p.T, m.astype(jnp.float32), precision='highest')
  return jnp.stack([rows[..., i, :] for i in range(p.shape[1])], axis=-1)


def decode(p: jax.Array, q: jax.Array) -> jax.Array:
  """Returns P Qᵀ [A, B], float32.

  Args:
    p: [A, R].
    q: [B, R].
  """
  return jnp.matmul(p, q.T, precision='highest')


def warm(q: jax.Array, last: jax.Array) -> jax.Array:
  """Returns the Q [B, R] to start the next round from: q, with unusable columns from `last`.

  A column of zeros (of an M that was zero, or of lower rank) or of NaN would never recover.

  Args:
    q: [B, R], from `encode`.
    last: [B, R], what this round started from.
  """
  alive = (jnp.isfinite(q).all(0) & (q != 0).any(0))[None]
  return jnp.where(alive, q, last)
