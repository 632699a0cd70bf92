"""Convolutions written as matrix products, for weights that differ from client to client.

`vmap` over clients turns `lax.conv_general_dilated` into a grouped convolution, and inside
`lax.scan` XLA's CPU back end runs a convolution by a naive single-threaded loop. Here a convolution
is either shifted slices (im2col) and one matrix product, or `winograd`: both stay matrix products
under `vmap`, `scan`, `grad` and `shard_map`, on every platform.

There are two layouts, both with the batch beside the vector lane, so that slices and sums move long
contiguous runs of memory whatever the window:

- 'HWBC' [H, W, B, C]: for many channels; runs of B * C values, and the one Winograd wants.
- 'CHWB' [C, H, W, B]: for few channels (fewer than a vector's lanes), where the batch fills them.

Worked example of im2col, in one dimension: the input 1, 2, 3, 4 under a window of 2 has three
patches, the columns of a matrix. The kernel (10, 1) times it is the convolution.

>>> geometry = _Geometry((4,), (2,), (1,), ((0, 0),), (1,))
>>> patches = _patches(jnp.arange(1.0, 5.0).reshape(1, 4, 1), geometry)
>>> patches[0].tolist()
[[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]
>>> (jnp.array([[10.0, 1.0]]) @ patches[0]).tolist()
[[12.0, 23.0, 34.0]]

Letters in shapes: B batch, C input channels, O output channels, H and W input, P and Q output
height and width, R and S height and width of the window, F groups of features, N = P * Q * B.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_mem.core import platforms, tracing, validate
from fedjax_mem.kernels.nn import rows, winograd

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


class _Geometry(NamedTuple):
  """The static part of a convolution; tuples have one entry for each spatial dimension.

  Attributes:
    size: of the input.
    window: its size, without dilation.
    strides: of the window.
    padding: (low, high); negative: the input is cut.
    dilation: distance between the inputs that a window looks at.
    groups: F, of features.
    last: whether the output's channels are its last axis, else its first.
  """

  size: tuple[int, ...]
  window: tuple[int, ...]
  strides: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  dilation: tuple[int, ...]
  groups: int = 1
  last: bool = False

  def output(self) -> tuple[int, ...]:
    """Returns the spatial shape of the output."""
    # A window of k with dilation d covers (k - 1) d + 1 inputs.
    return tuple(
      max(0, (n + lo + hi - (k - 1) * d - 1) // s + 1)
      for n, k, s, (lo, hi), d in zip(
        self.size, self.window, self.strides, self.padding, self.dilation, strict=True
      )
    )


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


def _pad(x: jax.Array, padding: Sequence[tuple[int, int]], first: int) -> jax.Array:
  """Returns x with its spatial axes, from `first` on, padded with zeros (or cut, if negative)."""
  if not any(lo or hi for lo, hi in padding):
    return x
  config = [(0, 0, 0)] * x.ndim
  config[first : first + len(padding)] = [(lo, hi, 0) for lo, hi in padding]
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def _slices(geometry: _Geometry, i: int) -> list[slice]:
  """Returns, for each place in the window along spatial dimension i, the inputs it looks at."""
  # Place k sees the inputs k d, k d + s, k d + 2 s, …: one strided slice with an entry for each
  # output. For a window of 2, stride 2 and 3 outputs: 0, 2, 4 and 1, 3, 5.
  stride, dilation, count = geometry.strides[i], geometry.dilation[i], geometry.output()[i]
  starts = [k * dilation for k in range(geometry.window[i])]
  return [slice(start, start + (count - 1) * stride + 1, stride) for start in starts]


def _patches(x: jax.Array, geometry: _Geometry) -> jax.Array:
  """Returns the patches [F, R * S * C / F, N] under the window, of x [C, H, W, B]: im2col."""
  # One spatial dimension after another, the last first: R + S slices instead of R * S, most of them
  # long runs, and what XLA fuses into a slice (a conversion of the input) is done S times only.
  channels, dims, groups = x.shape[0], len(geometry.window), geometry.groups
  patches = _pad(x, geometry.padding, 1)
  for i in reversed(range(dims)):
    # Each turn adds a leading axis for the window, so that axes are counted from the end.
    axis = patches.ndim - 1 - dims + i
    index = [slice(None)] * axis
    patches = jnp.stack([patches[(*index, view)] for view in _slices(geometry, i)])
  # [R, S, C, P, Q, B] becomes [R * S, F, C / F, …]; the groups go first, the rest are the rows in
  # the order of the kernel's [R, S, C / F].
  grouped = patches.reshape(-1, groups, channels // groups, *patches.shape[dims + 1 :])
  return grouped.swapaxes(0, 1).reshape(groups, grouped.shape[0] * grouped.shape[2], -1)


def _spread(patches: jax.Array, geometry: _Geometry) -> jax.Array:
  """Returns the transpose of `_patches`: the sum of all patches at their places, [C, H, W, B]."""
  window, groups, output = geometry.window, geometry.groups, geometry.output()
  batch = patches.shape[2] // math.prod(output)
  grouped = patches.reshape(groups, math.prod(window), -1, patches.shape[2])
  total = grouped.swapaxes(0, 1).reshape(*window, -1, *output, batch)
  # The dimensions of `_patches` in the opposite order, each undone: parts go where they came from.
  for i, (size, (low, high)) in enumerate(zip(geometry.size, geometry.padding, strict=True)):
    # One shifted sum after another, in place: one sum of padded parts tests bounds per element.
    parts, axis = total, len(window)
    shape = list(parts.shape[1:])
    shape[axis] = size + low + high
    total = jnp.zeros(shape, parts.dtype)
    for view, part in zip(_slices(geometry, i), parts, strict=True):
      total = total.at[(*[slice(None)] * axis, view)].add(part)
  return _pad(total, [(-low, -high) for low, high in geometry.padding], 1)


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


# A derivative of its own: the input's gradient sums slices in place (`_spread`), and the patches
# are kept from the forward pass.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _gemm(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
  """Returns the convolution of x, [O, P, Q, B], or [P, Q, B, O] if geometry.last.

  Args:
    x: [C, H, W, B].
    kernel: [R, S, C / F, O].
    geometry: of the convolution.
  """
  return _gemm_forward(x, kernel, geometry)[0]


@tracing.once(2)
def _gemm_forward(
  x: jax.Array, kernel: jax.Array, geometry: _Geometry
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """Returns (what `_gemm` returns, (patches, kernel) for `_gemm_backward`)."""
  patches, matrix = _patches(x, geometry), _matrix(kernel, geometry.groups)
  spatial, out = (*geometry.output(), x.shape[-1]), kernel.shape[-1]
  if geometry.last:  # One group only: of several, the groups would come first.
    return _dot(patches, matrix, (1, 1)).reshape(*spatial, out), (patches, kernel)
  return _dot(matrix, patches, (1, 1)).reshape(out, *spatial), (patches, kernel)


@tracing.once(0)
def _gemm_backward(
  geometry: _Geometry, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
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
  return _spread(d_patches, geometry), d_kernel


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
  geometry = _Geometry(spatial, kernel.shape[:2], strides, pairs, (1, 1))
  if 0 in geometry.output():
    raise ValueError(f'x must be at least as large as the window, got {x.shape!r} in {layout}.')
  method = resolve(method, layout, kernel.shape, strides, geometry.output())
  if method == 'lax':
    names = layout.replace('B', 'N')
    return lax.conv_general_dilated(
      x, kernel, strides, pairs, dimension_numbers=(names, 'HWIO', names)
    )
  if method == 'winograd':
    return winograd.conv(_pad(x, pairs, 0), kernel)
  if layout == 'CHWB':
    return _gemm(x, kernel, geometry)
  if kernel.shape[2] >= ROW_CHANNELS:
    places = rows.Geometry(geometry.window, strides, geometry.output())
    return rows.conv(_pad(x, pairs, 0), kernel, places)
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
  geometry = _Geometry(tuple(size), sizes, strides, pairs, dilation, feature_group_count)
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
