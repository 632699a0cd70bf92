"""A convolution as one product of rows, for many channels: [P * Q * B, R * S * C] times the kernel.

In the layout [H, W, B, C] a patch is a row: the channels under each place of the window, side by
side. Neither the input nor the output changes its layout, and every copy moves whole runs of C
values.

Worked example, in one row of two channels: a window of 2 sees (1, 2, 3, 4), then (3, 4, 5, 6).

>>> x = jnp.arange(1.0, 7.0).reshape(1, 3, 1, 2)
>>> patches(x, Geometry((1, 2), (1, 1), (1, 2))).reshape(2, 4).tolist()
[[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0]]

Letters in shapes are those of `kernels/nn/conv.py`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_mem.core.tracing import once
from fedjax_mem.kernels.nn import wide


class Geometry(NamedTuple):
  """The static part of a convolution whose input is padded already.

  Attributes:
    window: (R, S).
    strides: (vertical, horizontal).
    output: (P, Q).
  """

  window: tuple[int, ...]
  strides: tuple[int, ...]
  output: tuple[int, ...]

  def views(self, axis: int) -> list[slice]:
    """Returns, for each place in the window along an axis, the inputs that it looks at."""
    stride, count = self.strides[axis], self.output[axis]
    return [slice(k, k + (count - 1) * stride + 1, stride) for k in range(self.window[axis])]


def patches(x: jax.Array, geometry: Geometry) -> jax.Array:
  """Returns the patches [P, Q, B, R * S * C] of x [H, W, B, C], in the order of the kernel."""
  columns = jnp.concatenate([x[:, view] for view in geometry.views(1)], -1)
  return jnp.concatenate([columns[view] for view in geometry.views(0)], -1)


def _spread(parts: jax.Array, geometry: Geometry, size: tuple[int, ...]) -> jax.Array:
  """Returns the transpose of `patches`: parts [P, Q, B, R * S * C] added up, [H, W, B, C]."""
  (high, across), batch, dtype = size, parts.shape[2], parts.dtype
  # Floats of 16 bits would lose much in as many sums as the window has places.
  parts = wide.at_least_float32(parts)
  # One shifted sum after another, in place. Inputs under several windows get several terms.
  inner = parts.shape[3] // geometry.window[0]
  rows = jnp.zeros((high, geometry.output[1], batch, inner), parts.dtype)
  for view, part in zip(geometry.views(0), jnp.split(parts, geometry.window[0], -1), strict=True):
    rows = rows.at[view].add(part)
  total = jnp.zeros((high, across, batch, rows.shape[3] // geometry.window[1]), parts.dtype)
  for view, part in zip(geometry.views(1), jnp.split(rows, geometry.window[1], -1), strict=True):
    total = total.at[:, view].add(part)
  return total.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
  """Returns the convolution [P, Q, B, O] of x [H, W, B, C], padded, and the kernel [R, S, C, O].

  Differentiable in reverse mode only.
  """
  return _forward(x, kernel, geometry)[0]


@once(2)
def _forward(
  x: jax.Array, kernel: jax.Array, geometry: Geometry
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, jax.Array]]:
  """Returns (the output, (patches, kernel, a row of the input's shape) for `_backward`)."""
  rows = patches(x, geometry)
  y = rows.reshape(-1, rows.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
  shape = jnp.zeros((*x.shape[:2], 0), x.dtype)  # no values: only its shape is kept
  return y.reshape(*rows.shape[:3], -1), (rows, kernel, shape)


@once(0)
def _backward(
  geometry: Geometry, residuals: tuple[jax.Array, jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the gradients of x and of the kernel."""
  rows, kernel, shape = residuals
  g = cotangent.reshape(-1, cotangent.shape[-1])
  flat = rows.reshape(len(g), -1)
  d_kernel = lax.dot_general(flat, g, (((0,), (0,)), ((), ()))).reshape(kernel.shape)
  d_rows = lax.dot_general(g, kernel.reshape(-1, kernel.shape[-1]), (((1,), (1,)), ((), ())))
  # Where the input's gradient is not used (a first layer), XLA drops these lines.
  return _spread(d_rows.reshape(rows.shape), geometry, shape.shape[:2]), d_kernel


conv.defvjp(_forward, _backward)
