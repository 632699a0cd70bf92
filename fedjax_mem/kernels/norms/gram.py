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
>>> squares = squared_distances(x, jnp.ones(3, bool))
>>> (squares / squares[0, 1]).tolist()
[[0.0, 1.0, 9.0], [1.0, 0.0, 4.0], [9.0, 4.0, 0.0]]

Norms, and distances to a point, are returned as d * 2**e, in units of their own for each row, and
coefficients as multiples of 2**-units: one row of 1e36 among rows of 1e-36 keeps its norm, and its
share of a sum is neither lost nor infinite.

| edge case | result |
|---|---|
| values whose squares overflow or vanish in float32 | right; of all pairs: beside the middle row |
| a row beyond 2**84 times the middle one | in all pairs: infinitely far from the others |
| a squared distance of up to 2**-20 of the squared norms | in all pairs: 0, as it is rounding |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import platforms
from fedjax_mem.kernels.loops import parts

_PART = 1 << 13  # columns of a part
# Full float32 in products, on accelerators too, whose default keeps fewer bits.
_HIGHEST = jax.lax.Precision.HIGHEST
_LARGEST = float(np.finfo(np.float32).max)
_ROOM = 30  # (2**-25 / 2**30)**2 is 2**-110, far from the least ordinary number, 2**-126
_NOISE = 2.0**-20  # of two squared norms: what their difference is off by, with room


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


def _exponents(magnitudes: jax.Array) -> jax.Array:
  """Returns e, int32 in -126 … 126, with 2**(e - 1) <= magnitude < 2**e as far as that goes.

  2**e and 2**-e are ordinary numbers, and scale without rounding.

  >>> _exponents(jnp.array([6.0, 0.5, 0.0])).tolist()
  [3, 0, -126]
  """
  return jnp.where(magnitudes > 0, jnp.clip(jnp.frexp(magnitudes)[1], -126, 126), -126)


def _power(exponents: jax.Array) -> jax.Array:
  """Returns 2**exponents, float32."""
  return jnp.ldexp(jnp.float32(1), exponents)


def units(x: jax.Array) -> jax.Array:
  """Returns e [C], int32: 2**e is near the largest magnitude of every row of x [C, D]."""
  return _exponents(jnp.abs(x).max(1, initial=0).astype(jnp.float32))


def typical(x: jax.Array, on: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (the row whose largest magnitude is in the middle, e: 2**e is near that magnitude).

  If that row is zero, e is that of the smallest row that is not.

  Args:
    x: [C, D] floats.
    on: [C] booleans, the rows that count.
  """
  largest = jnp.abs(x).max(1, initial=0).astype(jnp.float32)
  # Rows that do not count come last. Of an even number, the smaller of the two in the middle.
  order = jnp.argsort(jnp.where(on, largest, jnp.inf))
  row = order[jnp.maximum(on.sum(dtype=jnp.int32) - 1, 0) // 2]
  least = jnp.where(on & (largest > 0), largest, jnp.inf).min()
  magnitude = jnp.where(largest[row] > 0, largest[row], jnp.where(jnp.isinf(least), 0, least))
  return row, _exponents(magnitude)


def squared_distances(x: jax.Array, on: jax.Array) -> jax.Array:
  """Returns squared distances [C, C] float32, all in one unit, which a comparison does not need.

  A distance to a row that does not count is infinite, that of a row to itself 0.

  Args:
    x: [C, D] floats; rows that do not count are zeros.
    on: [C] booleans, the rows that count.
  """
  middle, unit = typical(x, on)
  # In the typical row's unit times 2**_ROOM: no difference of float32 is smaller than 2**-25 of it,
  # so that its square is an ordinary number still, and the room is left for larger rows.
  scale = _power(jnp.maximum(-unit - _ROOM, -126))

  def part(start: jax.Array, length: int) -> jax.Array:
    values = _slice(x, start, length) * scale
    # The typical row is subtracted from all of them, which changes no distance.
    moved = values - values[middle][None]
    return jnp.matmul(moved, moved.T, precision=_HIGHEST)

  gram = _sum_of_parts(part, x)
  squares = jnp.diagonal(gram)
  both = squares[:, None] + squares[None]
  # 2 <a, b> as the sum of both triangles: they may be rounded differently, and this way distances
  # are symmetric.
  distances = both - (gram + gram.T)
  # What is rounding alone is 0: rows that are equal are so in whatever order they are.
  distances = jnp.where(distances <= both * _NOISE, 0, distances)
  # Infinity less infinity is NaN: such rows are too far to measure.
  seen = on[:, None] & on[None] & jnp.isfinite(both)
  distances = jnp.where(seen, distances, jnp.inf)
  return jnp.where(jnp.eye(len(x), dtype=bool), jnp.float32(0), distances)


def combine(coefficients: jax.Array, x: jax.Array, units: jax.Array | None = None) -> jax.Array:
  """Returns coefficients @ x in float32: [D] for coefficients [C], [K, D] for [K, C].

  Args:
    coefficients: float32.
    x: [C, D] finite floats.
    units: [C] int32, those of the rows: coefficients are of 2**-units x; None: of x.
  """
  if units is None:
    return jnp.matmul(coefficients, x.astype(jnp.float32), precision=_HIGHEST)
  scale = _power(-units)[:, None]

  def part(start: jax.Array, length: int) -> jax.Array:
    return combine(coefficients, _slice(x, start, length) * scale)

  size = x.shape[1]
  # In one piece elsewhere than on a CPU, as `_sum_of_parts`.
  if platforms.current() != 'cpu':
    return part(jnp.int32(0), size)
  combined: jax.Array = parts.stream(part, size, part=_PART)
  return combined


def norms(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (d, e), [C] float32 and int32: the L2 norm of every row of x [C, D] is d * 2**e.

  Args:
    x: [C, D] floats.
  """
  e = units(x)
  return jnp.sqrt(jnp.square(x.astype(jnp.float32) * _power(-e)[:, None]).sum(1)), e


def distances_to(
  x: jax.Array, units: jax.Array, coefficients: jax.Array, base: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """Returns (d, e), [C] float32 and int32: distances d * 2**e of rows to base + coefficients @ x.

  Args:
    x: [C, D] floats; rows that do not count are zeros.
    units: [C] int32, from `units`; the coefficients are of 2**-units x.
    coefficients: [C] float32, >= 0.
    base: [D] float32, or None: the origin.
  """
  # The point is made part by part too: it is as long as a row, and used once. Differences are
  # squared directly, without a Gram matrix, so that nothing cancels.
  reach = coefficients.sum()
  if base is not None:
    reach = jnp.maximum(reach, jnp.abs(base).max(initial=0))
  # Neither a row nor the point is much beyond 2**e, and one of them is near it.
  e = jnp.maximum(units, _exponents(jnp.minimum(reach, _LARGEST)))
  scale = _power(-e)[:, None]

  def part(start: jax.Array, length: int) -> jax.Array:
    values = _slice(x, start, length)
    point = combine(coefficients, values * _power(-units)[:, None])
    if base is not None:
      point += base if length == base.size else jax.lax.dynamic_slice(base, (start,), (length,))
    return jnp.square(values * scale - point[None] * scale).sum(1)

  return jnp.sqrt(_sum_of_parts(part, x)), e
