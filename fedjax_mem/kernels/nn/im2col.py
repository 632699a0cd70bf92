"""Patches of an input under a window, the columns of a matrix: im2col, and its transpose.

Worked example of im2col, in one dimension: the input 1, 2, 3, 4 under a window of 2 has three
patches, the columns of a matrix. The kernel (10, 1) times it is the convolution.

>>> geometry = Geometry((4,), (2,), (1,), ((0, 0),), (1,))
>>> patches = patches_of(jnp.arange(1.0, 5.0).reshape(1, 4, 1), geometry)
>>> patches[0].tolist()
[[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]]
>>> (jnp.array([[10.0, 1.0]]) @ patches[0]).tolist()
[[12.0, 23.0, 34.0]]

Letters in shapes: B batch, C input channels, O output channels, H and W input, P and Q output
height and width, R and S height and width of the window, F groups of features, N = P * Q * B.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_mem.kernels.nn import wide


class Geometry(NamedTuple):
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


def pad(x: jax.Array, padding: Sequence[tuple[int, int]], first: int) -> jax.Array:
  """Returns x with its spatial axes, from `first` on, padded with zeros (or cut, if negative)."""
  if not any(lo or hi for lo, hi in padding):
    return x
  config = [(0, 0, 0)] * x.ndim
  config[first : first + len(padding)] = [(lo, hi, 0) for lo, hi in padding]
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def _slices(geometry: Geometry, i: int) -> list[slice]:
  """Returns, for each place in the window along spatial dimension i, the inputs it looks at."""
  # Place k sees the inputs k d, k d + s, k d + 2 s, …: one strided slice with an entry for each
  # output. For a window of 2, stride 2 and 3 outputs: 0, 2, 4 and 1, 3, 5.
  stride, dilation, count = geometry.strides[i], geometry.dilation[i], geometry.output()[i]
  starts = [k * dilation for k in range(geometry.window[i])]
  return [slice(start, start + (count - 1) * stride + 1, stride) for start in starts]


def patches_of(x: jax.Array, geometry: Geometry) -> jax.Array:
  """Returns the patches [F, R * S * C / F, N] under the window, of x [C, H, W, B]: im2col."""
  # One spatial dimension after another, the last first: R + S slices instead of R * S, most of them
  # long runs, and what XLA fuses into a slice (a conversion of the input) is done S times only.
  channels, dims, groups = x.shape[0], len(geometry.window), geometry.groups
  patches = pad(x, geometry.padding, 1)
  for i in reversed(range(dims)):
    # Each turn adds a leading axis for the window, so that axes are counted from the end.
    axis = patches.ndim - 1 - dims + i
    index = [slice(None)] * axis
    patches = jnp.stack([patches[(*index, view)] for view in _slices(geometry, i)])
  # [R, S, C, P, Q, B] becomes [R * S, F, C / F, …]; the groups go first, the rest are the rows in
  # the order of the kernel's [R, S, C / F].
  grouped = patches.reshape(-1, groups, channels // groups, *patches.shape[dims + 1 :])
  return grouped.swapaxes(0, 1).reshape(groups, grouped.shape[0] * grouped.shape[2], -1)


def spread(patches: jax.Array, geometry: Geometry) -> jax.Array:
  """Returns the transpose of `patches_of`: the sum of all patches at their places, [C, H, W, B]."""
  window, groups, output = geometry.window, geometry.groups, geometry.output()
  batch = patches.shape[2] // math.prod(output)
  grouped = patches.reshape(groups, math.prod(window), -1, patches.shape[2])
  total = grouped.swapaxes(0, 1).reshape(*window, -1, *output, batch)
  # Floats of 16 bits would lose much in as many sums as the window has places.
  total = wide.at_least_float32(total)
  # The dimensions in the opposite order, each undone: parts go where they came from.
  for i, (size, (low, high)) in enumerate(zip(geometry.size, geometry.padding, strict=True)):
    # One shifted sum after another, in place: one sum of padded parts tests bounds per element.
    parts, axis = total, len(window)
    shape = list(parts.shape[1:])
    shape[axis] = size + low + high
    total = jnp.zeros(shape, parts.dtype)
    for view, part in zip(_slices(geometry, i), parts, strict=True):
      total = total.at[(*[slice(None)] * axis, view)].add(part)
  return pad(total, [(-low, -high) for low, high in geometry.padding], 1).astype(patches.dtype)
