"""Convolution with fewer multiplications: Winograd's minimal filtering, F(m x m, r x r).

An output tile of m x m values needs (m + r - 1)**2 products for each pair of channels instead of
m**2 r**2: 4 times fewer for 3 x 3 windows and m = 4, 2.8 times fewer for 5 x 5 windows and m = 2.
Input tiles d, kernels g and output tiles Y are transformed by small constant matrices,
Y = A^T [(G g G^T) * (B^T d B)] A (Lavin & Gray 2016, arXiv:1509.09308, eq. 8), and the sum over
channels is one matrix product for each of the (m + r - 1)**2 places in a tile. The transpose for
the input's gradient is the same three maps transposed, so that both gradients save as much.

Worked example, in one dimension: F(4, 3) gives 4 outputs of a window of 3 by 6 products, `*`, where
the definition takes 12. Each output is the sum of three neighbours, weighted by 1, 2, 3.

>>> at, g, bt = matrices(3)
>>> d, window = np.arange(1.0, 7.0), np.array([1.0, 2.0, 3.0])
>>> (at @ ((g @ window) * (bt @ d))).round(6).tolist()
[14.0, 20.0, 26.0, 32.0]
>>> np.correlate(d, window).tolist()
[14.0, 20.0, 26.0, 32.0]

The layout is [H, W, B, C]: every transform then moves and adds runs of B * C contiguous values. It
is fastest while a batch's tiles fit the cache: a forward pass of the 3 x 3 CNN took a quarter of
the time an example in batches of 20 to 50 of what it took in batches of 1,000.

Rounding: the points 0, +-1/sqrt(2), +-sqrt(2), infinity keep the matrices' entries near 1. Against
float64, the relative L2 error of a 3 x 3 convolution of 32 channels and of its gradients is 5e-7 to
1.5e-6, where that of the plain float32 sums is 2e-7 to 3e-7 (the customary points 0, +-1, +-2 give
1e-6 to 3e-6). A value that is not finite makes its whole column of the output NaN, not only its
window.

Letters in shapes: r side of the window, m side of an output tile, n = m + r - 1 side of an input
tile, Th and Tw tiles down and across, B batch, C input and O output channels, H and W input and
P and Q output height and width.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_mem.core.tracing import once
from fedjax_mem.kernels.nn import wide

# The finite interpolation points; infinity is the sixth. In a pair +-p, entries differ by signs.
_POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2.0**0.5, -(2.0**0.5))
# Side of the window r -> side of the output tile m; n = m + r - 1 = 6, one place for each point.
TILES = {3: 4, 5: 2}
# (transformed tiles [n * n, Th * Tw * B, C], transformed kernels [n * n, C, O])
_Residuals = tuple[jax.Array, jax.Array]


@functools.cache
def matrices(r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (A^T [m, n], G [n, r], B^T [n, n]) with n = m + r - 1 = 6, in float64.

  The Toom-Cook construction (Toom 1963, Cook 1966). Polynomials of m and r coefficients are
  multiplied by evaluating both at n points (A, G), multiplying the values, and interpolating (B).
  Filtering by a fixed kernel is the transpose of that map: hence A^T and B^T.

  Args:
    r: side of the window, a key of `TILES`.
  """
  m, n = TILES[r], len(_POINTS) + 1
  at, g, bt = np.zeros((m, n)), np.zeros((n, r)), np.zeros((n, n))
  for i, point in enumerate(_POINTS):
    others = [p for p in _POINTS if p != point]
    # Powers of the point: row k of A^T holds the k-th powers. 0**0 is 1.
    at[:, i] = point ** np.arange(m)
    # The Lagrange polynomial of a point is prod(x - p) / prod(point - p) over the other points. The
    # denominators go to G, whose transform of the kernel is not repeated for each tile.
    g[i] = point ** np.arange(r) / math.prod(point - p for p in others)
    bt[i, :-1] = np.poly(others)[::-1]
  # The value at infinity is the leading coefficient; its polynomial vanishes at all finite points.
  at[-1, -1] = g[-1, -1] = 1
  bt[-1] = np.poly(_POINTS)[::-1]
  for matrix in (at, g, bt):
    matrix[np.abs(matrix) < 1e-12] = 0  # Zeros up to rounding, which would cost additions.
  return at, g, bt


def _combine(row: np.ndarray, parts: list[jax.Array]) -> jax.Array:
  """Returns the sum of row[i] * parts[i], without the terms that are zero.

  >>> _combine(np.array([1.0, 0.0, -2.0]), [jnp.ones(2), jnp.ones(2), jnp.arange(2.0)]).tolist()
  [1.0, -1.0]
  """
  # Sums, not a matrix product: half of the entries of A^T and B^T are zeros or ones, and XLA fuses
  # sums with what produces and uses the parts.
  terms = [
    part if c == 1 else np.float32(c) * part for c, part in zip(row, parts, strict=True) if c
  ]
  return functools.reduce(jnp.add, terms)


def _band(matrix: np.ndarray, m: int, tiles: int, size: int) -> np.ndarray:
  """Returns [n * tiles, size]: matrix [n, k] times each of `tiles` tiles, m apart, of a column.

  Positions beyond `size` count as zeros, so that neither padding nor cutting is needed.

  >>> _band(np.array([[1.0, 2.0, 3.0]]), m=2, tiles=2, size=4).tolist()
  [[1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 1.0, 2.0]]
  """
  n, k = matrix.shape
  band = np.zeros((n, tiles, size), np.float32)
  for tile in range(tiles):
    low, high = tile * m, min(tile * m + k, size)
    band[:, tile, low:high] = matrix[:, : high - low]
  return band.reshape(n * tiles, size)


def _resize(x: jax.Array, size: int, axis: int) -> jax.Array:
  """Returns x cut, or padded with zeros, at the end of an axis."""
  # `lax.pad` does both: negative padding cuts.
  config = [(0, 0, 0)] * x.ndim
  config[axis] = (0, size - x.shape[axis], 0)
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def _transform(matrix: np.ndarray, x: jax.Array, m: int, tiles: tuple[int, int]) -> jax.Array:
  """Returns all tiles of x [H, W, B, C] transformed by rows and columns, [n * n, Th * Tw * B, C].

  Args:
    matrix: [n, k], applied to both axes of each tile of k x k values.
    x: [H, W, B, C].
    m: distance between tiles; they overlap by k - m.
    tiles: (Th, Tw).
  """
  # The vertical axis is one product with a banded matrix, although most of the band is zeros: that
  # costs less than reading memory twice, since XLA does not fuse a product with what comes before
  # and after. The horizontal axis is sums of slices: slice i holds the i-th value of every tile.
  (n, k), (high, wide), (height, width, batch, channels) = matrix.shape, tiles, x.shape
  band = _band(matrix, m, high, height)
  rows = jnp.matmul(band, x.reshape(height, -1)).reshape(n, high, width, batch, channels)
  rows = _resize(rows, (wide - 1) * m + k, 2)
  parts = [lax.slice_in_dim(rows, i, i + (wide - 1) * m + 1, m, 2) for i in range(k)]
  columns = jnp.stack([_combine(row, parts) for row in matrix], 1)
  return columns.reshape(n * n, -1, channels)


def _untransform(matrix: np.ndarray, places: jax.Array, m: int, size: tuple[int, int]) -> jax.Array:
  """Returns `_transform` transposed: the sum of all tiles at their places, [H, W, B, C].

  Args:
    matrix: [n, k], as in `_transform`.
    places: [n, n, Th, Tw, B, C].
    m: distance between tiles.
    size: (H, W).
  """
  # Position p of the output is i of tile t, p = m t + i, so it gets a term of each tile that
  # covers it. With i = m * step + phase: phase p % m, and tile p // m - step. Example, k = 6 and
  # m = 4: position 9 is phase 1, the sum of value 1 of tile 2 (step 0) and value 5 of tile 1
  # (step 1). The terms of a phase are whole arrays, shifted by `step` tiles: no scatter is needed.
  (n, k), (height, width), (high, wide) = matrix.shape, size, places.shape[2:4]
  reach = -(-k // m)  # tiles that a tile's values extend over
  columns = [places[:, j] for j in range(n)]
  parts = [_combine(matrix[:, i], columns) for i in range(k)]
  phases = []
  for phase in range(m):
    shifted = []
    for step, part in enumerate(parts[phase::m]):
      config = [(0, 0, 0), (0, 0, 0), (step, reach - 1 - step, 0), (0, 0, 0), (0, 0, 0)]
      shifted.append(lax.pad(part, jnp.zeros((), part.dtype), config))
    phases.append(functools.reduce(jnp.add, shifted))
  rows = jnp.stack(phases, 3).reshape(n * high, -1)
  y = jnp.matmul(_band(matrix, m, high, height).T, rows)
  return _resize(y.reshape(height, (wide + reach - 1) * m, *places.shape[4:]), width, 1)


def _inverse(matrix: np.ndarray, places: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Returns the output tiles put side by side, [P, Q, B, O].

  Args:
    matrix: A^T [m, n], applied to the rows and the columns of every tile.
    places: [n, n, Th, Tw, B, O].
    size: (P, Q).
  """
  m, (high, wide) = len(matrix), places.shape[2:4]
  rows = [_combine(row, list(places)) for row in matrix]
  tiles = [jnp.stack([_combine(c, list(row)) for c in matrix], 2) for row in rows]
  y = jnp.stack(tiles, 1).reshape(high * m, wide * m, *places.shape[4:])
  return _resize(_resize(y, size[0], 0), size[1], 1)


# A derivative of its own: JAX would transpose each strided slice into an array of the full size,
# padded with zeros, and add those up.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, r: int) -> jax.Array:
  """Returns `conv` for windows of r x r."""
  return _forward(x, kernel, r)[0]


@once(2)
def _forward(x: jax.Array, kernel: jax.Array, r: int) -> tuple[jax.Array, _Residuals]:
  """Returns (the output [P, Q, B, O], the transformed tiles and kernels for `_backward`)."""
  channels, out = kernel.shape[2:]
  m, (at, g, bt) = TILES[r], matrices(r)
  n, size = len(bt), (x.shape[0] - r + 1, x.shape[1] - r + 1)
  high, wide = (-(-side // m) for side in size)
  tiles = _transform(bt, x, m, (high, wide))
  # G g G^T of all kernels is one product: kron(G, G) acts on the flattened windows.
  double = np.kron(g, g).astype(np.float32)
  factors = jnp.matmul(double, kernel.reshape(r * r, -1)).reshape(n * n, channels, out)
  # One product [Th Tw B, C] x [C, O] for each of the n * n places: here the work is.
  products = jnp.matmul(tiles, factors).reshape(n, n, high, wide, x.shape[2], out)
  return _inverse(at, products, size), (tiles, factors)


@once(0)
def _backward(r: int, residuals: _Residuals, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the gradients of x [H, W, B, C] and of the kernel [r, r, C, O].

  Args:
    r: side of the window.
    residuals: from `_forward`.
    cotangent: [P, Q, B, O].
  """
  tiles, factors = residuals
  m, (at, g, bt) = TILES[r], matrices(r)
  height, width, batch, out = cotangent.shape
  n, high, wide = len(bt), -(-height // m), -(-width // m)
  # The forward pass backwards, each linear map transposed: A^T, the product, then G and B^T.
  d_products = _transform(at.T, cotangent, m, (high, wide))
  d_factors = jnp.einsum('knc,kno->kco', tiles, d_products)
  double = np.kron(g, g).astype(np.float32)
  d_kernel = jnp.matmul(double.T, d_factors.reshape(n * n, -1)).reshape(r, r, -1, out)
  # Where the input's gradient is not used (a first layer), XLA drops the rest.
  d_tiles = jnp.einsum('kno,kco->knc', d_products, factors).reshape(n, n, high, wide, batch, -1)
  return _untransform(bt, d_tiles, m, (height + r - 1, width + r - 1)), d_kernel


_conv.defvjp(_forward, _backward)


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns the convolution (VALID, stride 1) of x [H, W, B, C], shaped [P, Q, B, O].

  Differentiable in reverse mode only. Floats of 16 bits are computed in float32: the transforms
  would multiply their rounding by the numbers of the matrices.

  Args:
    x: [H, W, B, C], at least as large as the window.
    kernel: [r, r, C, O] with r in `TILES`, of the same dtype.
  """
  y = _conv(*map(wide.at_least_float32, (x, kernel)), kernel.shape[0])
  return y.astype(x.dtype)
