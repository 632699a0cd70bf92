"""A convolution and the max pooling after it as one product, for a narrow convolution.

With few input channels, the patches of im2col are many times the input and their product is narrow:
25 by 6 in the first layer of a LeNet. Here a column of the matrix is what ALL outputs of one window
of the pooling look at, and the other matrix has the kernel once for each of these outputs, shifted:
36 by 24, a quarter of the columns and half of the memory. The outputs of a window are then four
rows of the product, whose maximum moves nothing.

Worked example, in one row: a kernel of 2 and windows of 2 look at 3 inputs, and the matrix has the
kernel (10, 1) twice. Of the input 1, 2, 3, 4, 5 the outputs are 12, 23, 34, 45.

>>> x, kernel = jnp.arange(1.0, 6.0).reshape(1, 1, 5, 1), jnp.array([10.0, 1.0]).reshape(1, 2, 1, 1)
>>> _shifted(kernel, (1, 2)).T.tolist()
[[10.0, 1.0, 0.0], [0.0, 10.0, 1.0]]
>>> _tiled(x, kernel, _geometry(x, kernel, (1, 2), ((0, 0), (0, 0))), (1, 2)).ravel().tolist()
[23.0, 45.0]

Letters in shapes are those of `im2col`; K = P * Q * B over the windows of the pooling, which have
T places.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_mem.core import platforms
from fedjax_mem.core.tracing import once
from fedjax_mem.kernels.nn import alone, im2col, pool
from fedjax_mem.kernels.nn import conv as plain

# Values of a patch, output channels and places of a window up to which it pays, although it
# multiplies by zeros: found on LeNet's two layers with AVX-512, batch 64, clients one after another
# (25 and 6: a round takes 0.78 of its time; 150 and 16: a step 1.1).
NARROW, FEW, PLACES = 32, 16, 4


def conv_pool(
  x: jax.Array,
  kernel: jax.Array,
  *,
  padding: plain.Padding = 'VALID',
  layout: str = 'HWBC',
  window: Sequence[int] = (2, 2),
) -> jax.Array:
  """Returns `pool.max_pool` of the convolution with stride 1.

  An infinite input may make a window NaN where another of its values is finite. Where several
  values of a window are its maximum, the gradient goes to the first. Differentiable in reverse mode
  only.

  Args:
    x: [H, W, B, C], or [C, H, W, B] in the layout 'CHWB'; the output has the same layout.
    kernel: [R, S, C, O].
    padding: of the convolution: 'VALID', 'SAME' or ((top, bottom), (left, right)).
    layout: 'HWBC' or 'CHWB'.
    window: of the pooling.

  Raises:
    ValueError: as `conv.conv` and `pool.max_pool`.
  """
  narrow = kernel.ndim == 4 and math.prod(kernel.shape[:3]) <= NARROW and kernel.shape[3] <= FEW
  fits = layout == 'CHWB' and x.ndim == 4 and x.shape[3] > 1 and x.shape[0] == kernel.shape[2]
  whole = len(window) == 2 and all(isinstance(t, int) and t > 0 for t in window)
  if narrow and fits and whole and math.prod(window) <= PLACES and platforms.current() == 'cpu':
    tile = (window[0], window[1])
    pairs = plain.resolve_padding(padding, x.shape[1:3], kernel.shape[:2], (1, 1))
    geometry = _geometry(x, kernel, tile, pairs)
    if 0 not in geometry.output():
      return _tiled(x, kernel, geometry, tile)
  y = alone.conv(x, kernel, strides=(1, 1), padding=padding, layout=layout)
  return pool.max_pool(y, window, layout=layout)


def _geometry(
  x: jax.Array, kernel: jax.Array, tile: tuple[int, int], padding: tuple[tuple[int, int], ...]
) -> im2col.Geometry:
  """Returns the patches of whole tiles of outputs."""
  size = tuple(k + t - 1 for k, t in zip(kernel.shape[:2], tile, strict=True))
  return im2col.Geometry(x.shape[1:3], size, tile, padding, (1, 1))


def _offsets(tile: tuple[int, int]) -> list[tuple[int, int]]:
  """Returns the places of a tile, in row-major order."""
  return [(i, j) for i in range(tile[0]) for j in range(tile[1])]


def _shifted(kernel: jax.Array, tile: tuple[int, int]) -> jax.Array:
  """Returns the kernel [R, S, C, O] once for each place, [(R + t - 1) (S + t - 1) C, T * O]."""
  zero = jnp.zeros((), kernel.dtype)
  room = [(i, t - 1 - i, 0) for place in _offsets(tile) for i, t in zip(place, tile, strict=True)]
  pairs = zip(room[::2], room[1::2], strict=True)
  made = [lax.pad(kernel, zero, (*pair, (0, 0, 0), (0, 0, 0))) for pair in pairs]
  return jnp.stack(made, 3).reshape(-1, len(made) * kernel.shape[3])


def _unshifted(g: jax.Array, tile: tuple[int, int], shape: tuple[int, ...]) -> jax.Array:
  """Returns the transpose of `_shifted`, a gradient in the shape [R, S, C, O]."""
  r, s, channels, out = shape
  g = g.reshape(r + tile[0] - 1, s + tile[1] - 1, channels, -1, out)
  parts = [g[i : i + r, j : j + s, :, n] for n, (i, j) in enumerate(_offsets(tile))]
  return functools.reduce(jnp.add, parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _tiled(
  x: jax.Array, kernel: jax.Array, geometry: im2col.Geometry, tile: tuple[int, int]
) -> jax.Array:
  """Returns the largest output of each tile, [O, P, Q, B].

  Args:
    x: [C, H, W, B].
    kernel: [R, S, C, O].
    geometry: of the tiles.
    tile: the window of the pooling.
  """
  return _forward(x, kernel, geometry, tile)[0]


_Kept = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@once(2, 3)
def _forward(
  x: jax.Array, kernel: jax.Array, geometry: im2col.Geometry, tile: tuple[int, int]
) -> tuple[jax.Array, _Kept]:
  """Returns (what `_tiled` returns, (kernel, patches, all outputs, the largest))."""
  patches = im2col.patches_of(x, geometry)[0]
  outputs = lax.dot_general(_shifted(kernel, tile), patches, (((0,), (0,)), ((), ())))
  outputs = outputs.reshape(math.prod(tile), kernel.shape[3], -1)
  largest = functools.reduce(jnp.maximum, list(outputs))
  y = largest.reshape(kernel.shape[3], *geometry.output(), x.shape[3])
  return y, (kernel, patches, outputs, largest)


@once(0, 1)
def _backward(
  geometry: im2col.Geometry, tile: tuple[int, int], kept: _Kept, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the gradients of x and of the kernel; the arguments are those of `_forward`."""
  kernel, patches, outputs, largest = kept
  places = len(outputs)
  first = jnp.full(largest.shape, places, jnp.int32)  # where the largest is; NaN is nowhere
  for i in reversed(range(places)):
    first = jnp.where(outputs[i] == largest, jnp.int32(i), first)
  # Barred: else XLA looks for the first anew at each of the places.
  first, g = lax.optimization_barrier((first, cotangent.reshape(largest.shape)))
  here = first[None] == jnp.arange(places, dtype=jnp.int32).reshape(-1, 1, 1)
  g = jnp.where(here, g[None], jnp.zeros((), g.dtype)).reshape(-1, largest.shape[1])
  d_kernel = lax.dot_general(patches, g, (((1,), (1,)), ((), ())))
  # Where the input's gradient is not used (a first layer), XLA drops these two lines.
  d_patches = lax.dot_general(_shifted(kernel, tile), g, (((1,), (0,)), ((), ())))
  d_x = im2col.spread(d_patches[None], geometry)
  return d_x, _unshifted(d_kernel, tile, kernel.shape)


_tiled.defvjp(_forward, _backward)
