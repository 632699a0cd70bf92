"""Distances between rows of [C, D]: all of them by one matrix product, or those to one point.

|a - b|² is |a|² + |b|² - 2 <a, b>, and the inner products of all pairs are the Gram matrix x x^T, a
single matrix product. Both kinds go through the columns part by part, so that nothing as large as
the input is written. Float32 loses what is small beside the norms: so the rows are taken relative
to one of them, and in its units. That row is the one whose largest magnitude is in the middle,
which a minority cannot make large or small. Rows that do not count must be zeros.

Worked example: 4096, 4097 and 4099. The last two squares exceed 2**24 and are rounded, so that
their Gram matrix gives the squared distance 0 for the first two, where 1 is right. Relative to the
middle one they are -1, 0, 2, and nothing is rounded:

>>> x = jnp.array([[4096.0], [4097.0], [4099.0]])
>>> gram = x @ x.T
>>> float(gram[0, 0] + gram[1, 1] - 2 * gram[0, 1])
0.0
>>> squares, _ = squared_distances(x, jnp.ones(3, bool))
>>> (squares / typical(x, jnp.ones(3, bool))[1] ** 2).tolist()
[[0.0, 1.0, 9.0], [1.0, 0.0, 4.0], [9.0, 4.0, 0.0]]

| edge case | result |
|---|---|
| values whose squares overflow or vanish in float32 | right, while most rows are of one magnitude |
| a row beyond 2**63 times the middle one | infinitely far from the others |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_mem.core import platforms
from fedjax_mem.kernels.order import columns

_PART = 1 << 13  # columns of a part
# Full float32 in products, on accelerators too, whose default keeps fewer bits.
_HIGHEST = jax.lax.Precision.HIGHEST


def _sum_of_parts(f: Callable[[jax.Array, int], jax.Array], x: jax.Array) -> jax.Array:
  """Returns the sum of f(start, length) over parts of the columns of x [C, D], float32.

  Args:
    f: (first column, int32 scalar; number of columns, static) -> float32 array of a fixed shape.
    x: [C, D].
  """
  size = x.shape[1]
  # Elsewhere than on a CPU in one piece: a loop would leave most of the device idle.
  part = _PART if platforms.current() == 'cpu' else size
  full, rest = divmod(size, max(1, part))
  out = jnp.zeros(jax.eval_shape(lambda: f(jnp.int32(0), size)).shape, jnp.float32)
  if full > 1:
    out = jax.lax.fori_loop(0, full, lambda i, out: out + f(i * part, part), out)
  elif full:
    out = f(jnp.int32(0), part)
  return out + f(jnp.int32(full * part), rest) if rest else out


def _slice(x: jax.Array, start: jax.Array, length: int) -> jax.Array:
  """Returns `length` columns of x [C, D] from `start` on, as float32."""
  part = x if length == x.shape[1] else jax.lax.dynamic_slice_in_dim(x, start, length, 1)
  return part.astype(jnp.float32)


def _power(magnitude: jax.Array) -> jax.Array:
  """Returns a power of two near 1 / magnitude: it scales without rounding.

  >>> [float(_power(jnp.float32(m))) for m in (6.0, 0.5, 0.0)]
  [0.125, 1.0, 1.0]
  """
  # frexp gives 6 = 0.75 * 2**3, so 2**-3. The clip keeps the power and its inverse normal numbers.
  ordinary = (magnitude > 0) & jnp.isfinite(magnitude)
  exponent = jnp.where(ordinary, jnp.clip(jnp.frexp(magnitude)[1], -126, 126), 0)
  return jnp.ldexp(jnp.float32(1), -exponent)


def typical(x: jax.Array, on: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (the row whose largest magnitude is in the middle, a power of two near its inverse).

  Args:
    x: [C, D] floats.
    on: [C] booleans, the rows that count.
  """
  largest = jnp.abs(x).max(1, initial=0).astype(jnp.float32)
  # Rows that do not count come last. Of an even number, the smaller of the two in the middle.
  order = jnp.argsort(jnp.where(on, largest, jnp.inf))
  row = order[jnp.maximum(on.sum(dtype=jnp.int32) - 1, 0) // 2]
  return row, _power(largest[row])


def squared_distances(x: jax.Array, on: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (squared distances [C, C] in units of `scale`, norms [C]), float32.

  A distance to a row that does not count is infinite, that of a row to itself 0. The unit is such
  that typical distances neither overflow nor vanish: a comparison does not need it.

  Args:
    x: [C, D] floats; rows that do not count are zeros.
    on: [C] booleans, the rows that count.
  """
  rows = x.shape[0]
  middle, scale = typical(x, on)

  def part(start: jax.Array, length: int) -> jax.Array:
    values = _slice(x, start, length) * scale
    # The origin is one more row, the last: distances to it are norms. The typical row is subtracted
    # from all of them, which changes no distance.
    moved = jnp.pad(values, ((0, 1), (0, 0))) - values[middle][None]
    return jnp.matmul(moved, moved.T, precision=_HIGHEST)

  gram = _sum_of_parts(part, x)
  squares = jnp.diagonal(gram)
  # 2 <a, b> as the sum of both triangles: they may be rounded differently, and this way distances
  # are symmetric.
  distances = squares[:, None] + squares[None] - (gram + gram.T)
  # Rounding may give less than 0; infinity less infinity is NaN: such rows are too far to measure.
  distances = jnp.where(jnp.isfinite(distances), jnp.maximum(distances, 0), jnp.inf)
  norms = jnp.sqrt(distances[:rows, rows]) / scale
  among = jnp.where(on[:, None] & on[None], distances[:rows, :rows], jnp.inf)
  return jnp.where(jnp.eye(rows, dtype=bool), jnp.float32(0), among), norms


def combine(coefficients: jax.Array, x: jax.Array) -> jax.Array:
  """Returns coefficients @ x in float32: [D] for coefficients [C], [K, D] for [K, C].

  Args:
    coefficients: float32.
    x: [C, D] finite floats.
  """
  return jnp.matmul(coefficients, x.astype(jnp.float32), precision=_HIGHEST)


def norms(x: jax.Array) -> jax.Array:
  """Returns the L2 norm of every row of x [C, D], [C] float32, whose squares cannot overflow.

  Args:
    x: [C, D] floats.
  """
  scale = _power(jnp.abs(x).max(1, initial=0).astype(jnp.float32))
  return jnp.sqrt(jnp.square(x.astype(jnp.float32) * scale[:, None]).sum(1)) / scale


def distances_to(
  x: jax.Array, on: jax.Array, coefficients: jax.Array, base: jax.Array | None = None
) -> jax.Array:
  """Returns the distance [C] of every row of x to base + coefficients @ x, float32.

  Args:
    x: [C, D] floats; rows that do not count are zeros.
    on: [C] booleans, the rows that count.
    coefficients: [C] float32.
    base: [D] float32, or None: the origin.
  """
  # The point is made part by part too: it is as long as a row, and used once. Differences are
  # squared directly, without a Gram matrix, so that nothing cancels.
  _, scale = typical(x, on)

  def part(start: jax.Array, length: int) -> jax.Array:
    values = _slice(x, start, length)
    point = combine(coefficients, values)
    if base is not None:
      point += base if length == base.size else jax.lax.dynamic_slice(base, (start,), (length,))
    return jnp.square((values - point[None]) * scale).sum(1)

  return jnp.sqrt(_sum_of_parts(part, x)) / scale


def shares_of_smallest(scores: jax.Array, on: jax.Array, count: jax.Array) -> jax.Array:
  """Returns shares [C] that sum to `count`: 1 for the smallest scores; ties share the last places.

  Args:
    scores: [C] floats.
    on: [C] booleans, the rows that count.
    count: int32, at most as many as rows count.
  """
  return columns.smallest(scores[:, None], on, count)[:, 0]
