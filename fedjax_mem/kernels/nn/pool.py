"""Max pooling by strided slices, with a backward pass of its own.

`lax.reduce_window` and its transpose, `select_and_scatter`, run element by element on a CPU. With
windows that do not overlap, pooling is a maximum over strided slices and its transpose a
comparison, both full vectors wide.

Worked example: one row of four values, in windows of 1 x 2. The slices are 3, 2 and 1, 2; their
maximum is 3, 2. Of the second window both values are its maximum: the gradient goes to the first.

>>> x = jnp.array([3.0, 1.0, 2.0, 2.0]).reshape(1, 4, 1, 1)
>>> max_pool(x, (1, 2)).ravel().tolist()
[3.0, 2.0]
>>> jax.grad(lambda x: max_pool(x, (1, 2)).sum())(x).ravel().tolist()
[1.0, 0.0, 1.0, 0.0]
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_mem.core import validate
from fedjax_mem.core.tracing import once


def _parts(x: jax.Array, window: tuple[int, int], axis: int) -> list[jax.Array]:
  """Returns the R * S slices of x, one for each place in the window, in row-major order."""
  r, s = window
  # Strided slices: part (i, j) holds the value at row i, column j of every window. The slices stop
  # before the rows and columns that do not fill a window.
  rows = [lax.slice_in_dim(x, i, x.shape[axis] // r * r, r, axis) for i in range(r)]
  stop = x.shape[axis + 1] // s * s
  return [lax.slice_in_dim(row, j, stop, s, axis + 1) for row in rows for j in range(s)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool(x: jax.Array, window: tuple[int, int], axis: int) -> jax.Array:
  """Returns the maximum over the window, whose rows are along `axis` and columns along the next."""
  return functools.reduce(jnp.maximum, _parts(x, window, axis))


# A derivative of its own: that of a chain of maxima would split ties in halves at each maximum.
@once(1, 2)
def _forward(
  x: jax.Array, window: tuple[int, int], axis: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """Returns (the output, (x, the output) for `_backward`)."""
  y = _max_pool(x, window, axis)
  return y, (x, y)


def _interleave(parts: list[jax.Array], axis: int) -> jax.Array:
  """Returns the parts, each every len(parts)-th slice of the result along an axis, put together."""
  shape = list(parts[0].shape)
  shape[axis] *= len(parts)
  return jnp.stack(parts, axis + 1).reshape(shape)


def _shares(parts: list[jax.Array], y: jax.Array, cotangent: jax.Array) -> list[jax.Array]:
  """Returns what each place in the windows gets of the gradient: all of it, if it is the maximum.

  Args:
    parts: for each place, its value in every window.
    y: the maxima.
    cotangent: in the shape of y.
  """
  # One slice after another: the first whose value is the maximum gets the gradient.
  taken = jnp.zeros(y.shape, bool)
  shares = []
  for part in parts:
    hit = (part == y) & ~taken
    taken = taken | hit
    shares.append(jnp.where(hit, cotangent, jnp.zeros((), cotangent.dtype)))
  return shares


@once(0, 1)
def _backward(
  window: tuple[int, int],
  axis: int,
  residuals: tuple[jax.Array, jax.Array],
  cotangent: jax.Array,
) -> tuple[jax.Array]:
  """Returns the gradient of x, in a tuple.

  Args:
    window: (R, S).
    axis: of the window's rows.
    residuals: from `_forward`.
    cotangent: in the shape of the output.
  """
  x, y = residuals
  r, s = window
  shares = _shares(_parts(x, window, axis), y, cotangent)
  rows = [_interleave(shares[i * s : i * s + s], axis + 1) for i in range(r)]
  full = _interleave(rows, axis)
  # Rows and columns that fill no window have no gradient.
  rest = [(0, n - m, 0) for n, m in zip(x.shape, full.shape, strict=True)]
  return (lax.pad(full, jnp.zeros((), full.dtype), rest),)


_max_pool.defvjp(_forward, _backward)


def max_pool(x: jax.Array, window: Sequence[int] = (2, 2), *, layout: str = 'HWBC') -> jax.Array:
  """Returns the maximum over windows that do not overlap, [H // R, W // S, B, C].

  Rows and columns that do not fill a window are left out (padding VALID, stride = window). Where
  several values of a window are its maximum, the gradient goes to the first in row-major order, as
  in `lax.reduce_window` and PyTorch. A window that holds NaN gives NaN and no gradient.

  Args:
    x: [H, W, B, C], or [C, H, W, B] in the layout 'CHWB'; the output has the same layout.
    window: (R, S), at least 1 and no larger than the input.
    layout: 'HWBC' or 'CHWB'.

  Raises:
    ValueError: the window is not two integers that fit the input, or an unknown layout.
  """
  validate.one_of(('HWBC', 'CHWB'), layout=layout)
  if x.ndim != 4 or len(window) != 2:
    raise ValueError(f'window must be (R, S) for an input of 4 dimensions, got {window!r}.')
  axis = layout.index('H')
  sizes = tuple(
    validate.integer(window=k, at_most=n)
    for k, n in zip(window, x.shape[axis : axis + 2], strict=True)
  )
  return _max_pool(x, sizes, axis)


class _Windows(NamedTuple):
  """Windows along one axis; the values before and after the array are -inf.

  Attributes:
    axis: along which they lie.
    size: of a window.
    stride: between windows.
    padding: (low, high); negative: the array is cut.
  """

  axis: int
  size: int
  stride: int
  padding: tuple[int, int]

  def pad(self, x: jax.Array, value: float) -> jax.Array:
    """Returns x padded along the axis."""
    config = [(0, 0, 0)] * x.ndim
    config[self.axis] = (*self.padding, 0)
    return lax.pad(x, jnp.array(value, x.dtype), config)

  def places(self, length: int) -> list[slice]:
    """Returns, for each place in a window, its inputs in a padded axis of that length."""
    reach = (length - self.size) // self.stride * self.stride + 1
    return [slice(i, i + reach, self.stride) for i in range(self.size)]

  def parts(self, x: jax.Array) -> list[jax.Array]:
    """Returns what each place in a window sees of x, padded: one value for each window."""
    x = self.pad(x, -jnp.inf)
    places = self.places(x.shape[self.axis])
    return [lax.slice_in_dim(x, p.start, p.stop, p.step, self.axis) for p in places]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_along(x: jax.Array, windows: _Windows) -> jax.Array:
  """Returns the maximum of each window along one axis."""
  return functools.reduce(jnp.maximum, windows.parts(x))


def _along_forward(
  x: jax.Array, windows: _Windows
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """Returns (the output, (x, the output) for `_along_backward`)."""
  y = _max_along(x, windows)
  return y, (x, y)


def _along_backward(
  windows: _Windows, residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array]:
  """Returns the gradient of x, in a tuple; the arguments are as those of `_backward`."""
  x, y = residuals
  shares = _shares(windows.parts(x), y, cotangent)
  axis, (low, high) = windows.axis, windows.padding
  length = x.shape[axis] + low + high
  shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
  total = jnp.zeros(shape, cotangent.dtype)
  for place, share in zip(windows.places(length), shares, strict=True):
    total = total.at[(*[slice(None)] * axis, place)].add(share)
  return (windows._replace(padding=(-low, -high)).pad(total, 0),)


_max_along.defvjp(_along_forward, _along_backward)


def max_windows(
  x: jax.Array,
  window: Sequence[int],
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
) -> jax.Array:
  """Returns the maximum over windows in all axes, as `lax.reduce_window` with `lax.max`.

  The gradient goes to the first maximum of a window, as in `max_pool`.

  Args:
    x: of any shape.
    window: its size along each axis.
    strides: between windows along each axis.
    padding: (low, high) along each axis, of -inf; negative: x is cut.
  """
  # One axis after another, the last first: of equal values the first in row-major order is still
  # the one that is found. Windows that overlap share the maxima of their rows.
  for axis in reversed(range(x.ndim)):
    low, high = padding[axis]
    windows = _Windows(axis, window[axis], strides[axis], (low, high))
    if windows[1:] != (1, 1, (0, 0)):
      x = _max_along(x, windows)
  return x
