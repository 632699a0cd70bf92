"""Convolutions written as matrix products, for weights that differ from client to client.

`vmap` over clients turns `lax.conv_general_dilated` into a grouped convolution, and inside
`lax.scan` XLA's CPU back end runs a convolution by a naive single-threaded loop. Here a convolution
is either shifted slices (im2col) and one matrix product, or `winograd`: both stay matrix products
under `vmap`, `scan`, `grad` and `shard_map`, on every platform.

There are two layouts, both with the batch beside the vector lane, so that slices and sums move long
contiguous runs of memory whatever the window:

- 'HWBC' [H, W, B, C]: for many channels; runs of B * C values, and the one Winograd wants.
- 'CHWB' [C, H, W, B]: for few channels (fewer than a vector's lanes), where the batch fills them.

Letters in shapes: B batch, C input channels, O output channels, H and W input, P and Q output
height and width, R and S height and width of the window, F groups of features, N = P * Q * B.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_mem.core import platforms, tracing, validate
from fedjax_mem.kernels.nn import im2col, rows, winograd

LAYOUTS = ('HWBC', 'CHWB')
METHODS = ('auto', 'winograd', 'gemm', 'lax')
# Where Winograd's transforms pay off, as benchmarks/conv.py finds on a CPU with AVX-512 (batch 20).
# Side of the window -> least number of input and of output channels.
WINOGRAD_CHANNELS = {3: 8, 5: 16}
# Input channels from which on a run of a patch in 'HWBC' fills a cache line.
ROW_CHANNELS = 16
WINOGRAD_SIDE = 3  # least height and width of the output: below it most of a tile is padding
# (platform, most input channels of a group, method of 'auto'); the first match counts, without one
# 'lax'. The rows are made by `python -m benchmarks.gpu_check conv`, which nobody has measured yet.
ELSEWHERE: tuple[tuple[str, float, str], ...] = ()
# 'VALID', 'SAME', or (low, high) for each spatial dimension.
Padding = str | Sequence[tuple[int, int]]


def resolve_padding(
  padding: Padding, size: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
  """Returns (low, high) padding of each spatial dimension.

  Args:
    padding: 'VALID', 'SAME' (output = ceil(input / stride), the odd row at the end) or pairs.
    size: spatial shape of the input.
    window: spatial shape of the (dilated) window.
    strides: a stride for each spatial dimension.

  Raises:
    ValueError: another name, or not one pair of integers for each dimension.
  """
  if isinstance(padding, str):
    validate.one_of(('VALID', 'SAME'), padding=padding.upper())
    if padding.upper() == 'VALID':
      return ((0, 0),) * len(size)
    total = [
      # What the ceil(n / s) windows reach beyond the input: for n = 5, s = 2, k = 3 it is 2.
      max(0, (-(-n // s) - 1) * s + k - n)
      for n, k, s in zip(size, window, strides, strict=True)
    ]
    return tuple((t // 2, t - t // 2) for t in total)
  pairs = tuple((int(lo), int(hi)) for lo, hi in padding)
  if len(pairs) != len(size):
    raise ValueError(f'padding must be a pair for each of {len(size)} dimensions, got {padding!r}.')
  return pairs


def _matrix(kernel: jax.Array, groups: int) -> jax.Array:
  """Returns the kernel [R, S, C / F, O] as matrices [F, R * S * C / F, O / F]."""
  out = kernel.shape[-1]
  matrix = kernel.reshape(-1, groups, out // groups)
  return matrix.transpose(1, 0, 2) if groups > 1 else matrix.reshape(1, -1, out)


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
  """Returns the product of a [F, ...] and b [F, ...], group by group.

  Args:
    a: [F, ., .].
    b: [F, ., .].
    contract: the dimension of a and that of b, 1 or 2, that are summed over.
  """
  if a.shape[0] == 1:  # A batched product of one matrix would miss the fast path.
    return lax.dot_general(a[0], b[0], (((contract[0] - 1,), (contract[1] - 1,)), ((), ())))[None]
  return lax.dot_general(a, b, (((contract[0],), (contract[1],)), ((0,), (0,))))


# A derivative of its own: the gradient of the input sums slices in place (`im2col.spread`), patches
# are kept from the forward pass.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gemm(x: jax.Array, kernel: jax.Array, geometry: im2col.Geometry) -> jax.Array:
  """Returns the convolution of x, [O, P, Q, B], or [P, Q, B, O] if geometry.last.

  Args:
    x: [C, H, W, B].
    kernel: [R, S, C / F, O].
    geometry: of the convolution.
  """
  return _gemm_forward(x, kernel, geometry)[0]


@tracing.once(2)
def _gemm_forward(
  x: jax.Array, kernel: jax.Array, geometry: im2col.Geometry
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """Returns (what `_gemm` returns, (patches, kernel) for `_gemm_backward`)."""
  patches, matrix = im2col.patches_of(x, geometry), _matrix(kernel, geometry.groups)
  spatial, out = (*geometry.output(), x.shape[-1]), kernel.shape[-1]
  if geometry.last:  # One group only: of several, the groups would come first.
    return _dot(patches, matrix, (1, 1)).reshape(*spatial, out), (patches, kernel)
  return _dot(matrix, patches, (1, 1)).reshape(out, *spatial), (patches, kernel)


@tracing.once(0)
def _gemm_backward(
  geometry: im2col.Geometry, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the gradients of x [C, H, W, B] and of the kernel [R, S, C / F, O].

  Args:
    geometry: of the convolution.
    residuals: from `_gemm_forward`.
    cotangent: in the shape of the output.
  """
  patches, kernel = residuals
  groups, out = geometry.groups, kernel.shape[-1]
  # The product was matrix^T patches; its derivatives are the patches times g, summed over N, and
  # the matrix times g, summed over the output channels. g: [F, O / F, N], or last: [1, N, O].
  g = cotangent.reshape((1, -1, out) if geometry.last else (groups, out // groups, -1))
  channel, column = (2, 1) if geometry.last else (1, 2)
  d_matrix = _dot(patches, g, (2, column))
  d_kernel = d_matrix.transpose(1, 0, 2).reshape(kernel.shape)
  # Where the input's gradient is not used (a first layer), XLA drops these two lines.
  d_patches = _dot(_matrix(kernel, groups), g, (2, channel))
  return im2col.spread(d_patches, geometry), d_kernel


_gemm.defvjp(_gemm_forward, _gemm_backward)


def _elsewhere(platform: str, channels: int) -> str:
  """Returns the method of `ELSEWHERE` for a platform and input channels of a group."""
  return next((way for p, most, way in ELSEWHERE if p == platform and channels <= most), 'lax')


def resolve(
  method: str,
  layout: str,
  kernel_shape: Sequence[int],
  strides: Sequence[int],
  output: Sequence[int],
) -> str:
  """Returns how a convolution is to be computed: 'winograd', 'gemm' or 'lax'.

  'auto' is by `ELSEWHERE` on a GPU or a TPU, whose libraries have grouped kernels of their own. On
  a CPU it is the faster of the other two for the layer's shape, as measured.

  Args:
    method: one of `METHODS`.
    layout: one of `LAYOUTS`.
    kernel_shape: (R, S, C, O).
    strides: (vertical, horizontal).
    output: (P, Q).

  Raises:
    ValueError: an unknown name, or Winograd where it does not apply.
  """
  validate.one_of(METHODS, method=method)
  validate.one_of(LAYOUTS, layout=layout)
  r, s, channels, out = kernel_shape
  # Winograd is written for square windows of the sides in `TILES` and stride 1 only.
  possible = layout == 'HWBC' and r == s and r in winograd.TILES and tuple(strides) == (1, 1)
  if method == 'winograd' and not possible:
    raise ValueError(
      f'method must be another than {method!r} for the layout {layout!r}, a kernel of shape '
      f'{tuple(kernel_shape)!r} and strides {tuple(strides)!r}: it needs HWBC, a window of 3 x 3 '
      f'or 5 x 5 and stride 1.'
    )
  if method != 'auto':
    return method
  if (platform := platforms.current()) != 'cpu':
    return _elsewhere(platform, channels)
  # With few channels the transforms cost more than the products they save.
  pays = possible and min(channels, out) >= WINOGRAD_CHANNELS[r] and min(output) >= WINOGRAD_SIDE
  return 'winograd' if pays else 'gemm'


def conv(
  x: jax.Array,
  kernel: jax.Array,
  *,
  strides: Sequence[int] = (1, 1),
  padding: Padding = 'VALID',
  layout: str = 'HWBC',
  method: str = 'auto',
) -> jax.Array:
  """Returns the convolution (cross-correlation) of x [H, W, B, C], shaped [P, Q, B, O].

  Differentiable in reverse mode only.

  Args:
    x: [H, W, B, C], or [C, H, W, B] in the layout 'CHWB'; the output has the same layout.
    kernel: [R, S, C, O].
    strides: (vertical, horizontal).
    padding: 'VALID', 'SAME' or ((top, bottom), (left, right)).
    layout: 'HWBC' or 'CHWB'.
    method: 'auto', 'winograd', 'gemm' or 'lax', see `resolve`.

  Raises:
    ValueError: the channels of `x` and `kernel` differ, or an argument is out of range.
  """
  validate.one_of(LAYOUTS, layout=layout)
  if x.ndim != 4 or kernel.ndim != 4 or x.shape[layout.index('C')] != kernel.shape[2]:
    raise ValueError(
      f'kernel must be [R, S, C, O] to fit an input {layout} of shape {x.shape!r}, '
      f'got {kernel.shape!r}.'
    )
  strides = tuple(validate.integer(strides=s) for s in strides)
  spatial = x.shape[:2] if layout == 'HWBC' else x.shape[1:3]
  pairs = resolve_padding(padding, spatial, kernel.shape[:2], strides)
  geometry = im2col.Geometry(spatial, kernel.shape[:2], strides, pairs, (1, 1))
  if 0 in geometry.output():
    raise ValueError(f'x must be at least as large as the window, got {x.shape!r} in {layout}.')
  method = resolve(method, layout, kernel.shape, strides, geometry.output())
  if method == 'lax':
    names = layout.replace('B', 'N')
    return lax.conv_general_dilated(
      x, kernel, strides, pairs, dimension_numbers=(names, 'HWIO', names)
    )
  if method == 'winograd':
    return winograd.conv(im2col.pad(x, pairs, 0), kernel)
  if layout == 'CHWB':
    return _gemm(x, kernel, geometry)
  if kernel.shape[2] >= ROW_CHANNELS:
    places = rows.Geometry(geometry.window, strides, geometry.output())
    return rows.conv(im2col.pad(x, pairs, 0), kernel, places)
  x = x.transpose(3, 0, 1, 2)
  if kernel.shape[2] == 1:  # The product is then narrow enough to come out in this layout.
    return _gemm(x, kernel, geometry._replace(last=True))
  return _gemm(x, kernel, geometry).transpose(1, 2, 3, 0)


def conv_general_dilated(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: Padding,
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: Any = None,
  feature_group_count: int = 1,
  batch_group_count: int = 1,
  precision: Any = None,
  preferred_element_type: Any = None,
) -> jax.Array:
  """Returns what `lax.conv_general_dilated` returns, computed by matrix products on a CPU.

  For `flax.linen.Conv(..., conv_general_dilated=conv_general_dilated)`: a module that a user has
  written becomes fast under per-client weights without another change.

  Takes the arguments of `lax.conv_general_dilated`: any number of spatial dimensions, layouts,
  strides, dilations and feature groups. On a CPU `batch_group_count` must be 1, `precision` is not
  used, and the result has the dtype `preferred_element_type`, or that of the product.

  Raises:
    ValueError: a batch group count other than 1.
  """
  numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
  platform = platforms.current()
  if platform != 'cpu' and _elsewhere(platform, rhs.shape[numbers.rhs_spec[1]]) == 'lax':
    return lax.conv_general_dilated(
      lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
      feature_group_count, batch_group_count, precision, preferred_element_type,
    )  # fmt: skip
  if batch_group_count != 1:
    raise ValueError(f'batch_group_count must be 1, got {batch_group_count!r}.')
  # The axes of each operand, wherever they are, and from here on only the layout CHWB.
  (batch, feature, *spatial), (out, inner, *window) = numbers.lhs_spec, numbers.rhs_spec
  kernel = rhs.transpose(*window, inner, out)
  sizes, strides = kernel.shape[:-2], tuple(window_strides)
  dilation = tuple(rhs_dilation or (1,) * len(spatial))
  inputs = tuple(lhs_dilation or (1,) * len(spatial))
  dilated = [(k - 1) * d + 1 for k, d in zip(sizes, dilation, strict=True)]
  size = [(lhs.shape[i] - 1) * d + 1 for i, d in zip(spatial, inputs, strict=True)]
  pairs = resolve_padding(padding, size, dilated, strides)
  places = (numbers.out_spec[1], *numbers.out_spec[2:], numbers.out_spec[0])
  geometry = im2col.Geometry(tuple(size), sizes, strides, pairs, dilation, feature_group_count)
  plain = len(spatial) == 2 and {*dilation, *inputs, feature_group_count} == {1}
  if plain and resolve('auto', 'HWBC', kernel.shape, strides, geometry.output()) == 'winograd':
    y = conv(lhs.transpose(*spatial, batch, feature), kernel, padding=pairs).transpose(3, 0, 1, 2)
  else:
    x = lhs.transpose(feature, *spatial, batch)
    # The input's dilation puts d - 1 zeros between values.
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, d - 1) for d in (1, *inputs, 1)])
    y = _gemm(x, kernel, geometry)
  # From [O, P, Q, B] to the caller's layout: the inverse of the permutation `places`.
  order = sorted(range(len(places)), key=lambda i: places[i])
  return y.transpose(order).astype(preferred_element_type or y.dtype)
