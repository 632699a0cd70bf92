"""Convolution with fewer multiplications: the minimal filtering of Winograd, F(m x m, r x r).

An output tile of m x m values needs (m + r - 1)**2 products for each pair of channels instead of
m**2 r**2: 4 times fewer for 3 x 3 windows and m = 4, 2.8 times fewer for 5 x 5 windows and m = 2.
Input tiles, kernels and output tiles are transformed by small constant matrices,
Y = A^T [(G g G^T) * (B^T d B)] A (Lavin & Gray 2016, arXiv:1509.09308, eq. 8), and the sum over
channels is one matrix product for each of the (m + r - 1)**2 places in a tile. The transpose for
the input's gradient is the same three maps transposed, so that both gradients save as much.

The layout is [H, W, B, C]: every transform then moves and adds runs of B * C contiguous values. It
is fastest while a batch's tiles fit the cache: a forward pass of the 3 x 3 CNN took a quarter of
the time an example in batches of 20 to 50 of what it took in batches of 1,000.

Rounding: the points 0, +-1/sqrt(2), +-sqrt(2), infinity keep the matrices' entries near 1. Against
float64, the relative L2 error of a 3 x 3 convolution of 32 channels and of its gradients is 5e-7 to
1.5e-6, where that of the plain float32 sums is 2e-7 to 3e-7 (the customary points 0, +-1, +-2 give
1e-6 to 3e-6). A value that is not finite makes its whole column of the output NaN, not only its
window.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2.0**0.5, -(2.0**0.5))
TILES = {3: 4, 5: 2}  # r -> m; m + r - 1 = 6 places, the five points and infinity.


@functools.cache
def matrices(r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (A^T [m, n], G [n, r], B^T [n, n]) with n = m + r - 1 = 6, in float64.

  By Toom-Cook: evaluation of the kernel at the points, and interpolation through the polynomials
  that vanish at all points but one.
  """
  m, n = TILES[r], len(_POINTS) + 1
  at, g, bt = np.zeros((m, n)), np.zeros((n, r)), np.zeros((n, n))
  for i, point in enumerate(_POINTS):
    others = [p for p in _POINTS if p != point]
    at[:, i] = point ** np.arange(m)
    g[i] = point ** np.arange(r) / math.prod(point - p for p in others)
    bt[i, :-1] = np.poly(others)[::-1]
  at[-1, -1] = g[-1, -1] = 1
  bt[-1] = np.poly(_POINTS)[::-1]
  for matrix in (at, g, bt):
    matrix[np.abs(matrix) < 1e-12] = 0  # Zeros up to rounding, which would cost additions.
  return at, g, bt


def _combine(row: np.ndarray, parts: list[jax.Array]) -> jax.Array:
  """Returns the sum of row[i] * parts[i], without the terms that are zero."""
  terms = [
    part if c == 1 else np.float32(c) * part for c, part in zip(row, parts, strict=True) if c
  ]
  return functools.reduce(jnp.add, terms)


def _band(matrix: np.ndarray, m: int, tiles: int, size: int) -> np.ndarray:
  """Returns [n * tiles, size]: matrix [n, k] times each of `tiles` tiles, m apart, of a column.

  Positions beyond `size` count as zeros, so that neither padding nor cutting is needed.
  """
  n, k = matrix.shape
  band = np.zeros((n, tiles, size), np.float32)
  for tile in range(tiles):
    low, high = tile * m, min(tile * m + k, size)
    band[:, tile, low:high] = matrix[:, : high - low]
  return band.reshape(n * tiles, size)


def _resize(x: jax.Array, size: int, axis: int) -> jax.Array:
  """Returns x cut, or padded with zeros, at the end of an axis."""
  config = [(0, 0, 0)] * x.ndim
  config[axis] = (0, size - x.shape[axis], 0)
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def _transform(matrix: np.ndarray, x: jax.Array, m: int, tiles: tuple[int, int]) -> jax.Array:
  """Returns all tiles of x [H, W, B, C] transformed by rows and columns, [n * n, tiles * B, C].

  The rows are one product with a banded matrix: it costs less than reading memory twice, and XLA
  cannot fuse it with what comes before and after. The columns are sums of slices.
  """
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
  (n, k), (height, width), (high, wide) = matrix.shape, size, places.shape[2:4]
  reach = -(-k // m)
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, r: int) -> jax.Array:
  return _forward(x, kernel, r)[0]


def _forward(x, kernel, r):
  channels, out = kernel.shape[2:]
  m, (at, g, bt) = TILES[r], matrices(r)
  n, size = len(bt), (x.shape[0] - r + 1, x.shape[1] - r + 1)
  high, wide = (-(-side // m) for side in size)
  tiles = _transform(bt, x, m, (high, wide))
  double = np.kron(g, g).astype(np.float32)
  factors = jnp.matmul(double, kernel.reshape(r * r, -1)).reshape(n * n, channels, out)
  products = jnp.matmul(tiles, factors).reshape(n, n, high, wide, x.shape[2], out)
  return _inverse(at, products, size), (tiles, factors)


def _backward(r, residuals, cotangent):
  tiles, factors = residuals
  m, (at, g, bt) = TILES[r], matrices(r)
  height, width, batch, out = cotangent.shape
  n, high, wide = len(bt), -(-height // m), -(-width // m)
  d_products = _transform(at.T, cotangent, m, (high, wide))
  d_factors = jnp.einsum('knc,kno->kco', tiles, d_products)
  double = np.kron(g, g).astype(np.float32)
  d_kernel = jnp.matmul(double.T, d_factors.reshape(n * n, -1)).reshape(r, r, -1, out)
  # Where nobody asks for the input's gradient (a first layer), XLA drops the rest.
  d_tiles = jnp.einsum('kno,kco->knc', d_products, factors).reshape(n, n, high, wide, batch, -1)
  return _untransform(bt, d_tiles, m, (height + r - 1, width + r - 1)), d_kernel


_conv.defvjp(_forward, _backward)


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns the convolution (VALID, stride 1) of x [H, W, B, C], shaped [P, Q, B, O].

  Differentiable in reverse mode only.

  Args:
    x: float32, at least as large as the window.
    kernel: [r, r, C, O] with r in `TILES`.
  """
  return _conv(x, kernel, kernel.shape[0])
