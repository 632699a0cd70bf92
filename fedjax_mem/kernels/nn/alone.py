"""Convolutions of one example, which `vmap` puts side by side in the batch's own axis.

The loss of one example at a time, as differentially private training needs it, runs convolutions
with a batch of one. `vmap` alone would add an axis in front, and the layouts of `conv`, whose long
runs of memory come from the batch beside the channels, would be lost.

Reference: Lee & Kifer (2021), arXiv 2009.03106, on convolutions of a batch for single gradients.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from fedjax_mem.kernels.nn import conv as several


def conv(
  x: jax.Array, kernel: jax.Array, *, strides: tuple[int, int], padding: Any, layout: str
) -> jax.Array:
  """Returns `kernels.nn.conv.conv`; for a batch of one, examples under `vmap` become its batch.

  Args:
    x: [H, W, B, C], or [C, H, W, B] in the layout 'CHWB'; the output has the same layout.
    kernel: [R, S, C, O].
    strides: (vertical, horizontal).
    padding: 'VALID', 'SAME' or ((top, bottom), (left, right)).
    layout: 'HWBC' or 'CHWB'.

  Raises:
    ValueError: as `kernels.nn.conv.conv`.
  """
  if x.ndim != 4 or x.shape[layout.index('B')] != 1:
    return several.conv(x, kernel, strides=strides, padding=padding, layout=layout)
  pairs = padding if isinstance(padding, str) else tuple((int(lo), int(hi)) for lo, hi in padding)
  done: jax.Array = _made(tuple(strides), pairs, layout)(x, kernel)
  return done


@functools.cache
def _made(strides: tuple[int, int], padding: Any, layout: str) -> Any:
  """Returns the convolution (x, kernel) -> y for a batch of one."""
  axis = layout.index('B')
  plain = functools.partial(several.conv, strides=strides, padding=padding, layout=layout)

  def together(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, 0, axis).squeeze(axis + 1)

  def apart(y: jax.Array) -> jax.Array:
    return jnp.expand_dims(jnp.moveaxis(y, axis, 0), axis + 1)

  def to_input(x: jax.Array, kernel: jax.Array, g: jax.Array) -> jax.Array:
    # A convolution is linear: at zeros, so that nothing of the forward pass is left to compute.
    moved: jax.Array = jax.vjp(lambda x: plain(x, kernel), jnp.zeros_like(x))[1](g)[0]
    return moved

  forward, backward = custom_vmap(plain), custom_vmap(to_input)

  @forward.def_vmap
  def _(size: int, batched: list[bool], x: jax.Array, kernel: jax.Array) -> Any:
    del size
    if batched != [True, False]:
      return jax.vmap(plain, [0 if b else None for b in batched])(x, kernel), True
    return apart(plain(together(x), kernel)), True

  @backward.def_vmap
  def _(size: int, batched: list[bool], x: jax.Array, kernel: jax.Array, g: jax.Array) -> Any:
    del size
    if batched != [True, False, True]:
      axes = [0 if b else None for b in batched]
      return jax.vmap(to_input, axes)(x, kernel, g), True
    return apart(to_input(together(x), kernel, together(g))), True

  @jax.custom_vjp
  def one(x: jax.Array, kernel: jax.Array) -> jax.Array:
    y: jax.Array = forward(x, kernel)
    return y

  def pull(residuals: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    # Each example's own gradient of the kernel: `vmap` as it is.
    return backward(x, kernel, g), jax.vjp(lambda k: plain(x, k), kernel)[1](g)[0]

  one.defvjp(lambda x, kernel: (forward(x, kernel), (x, kernel)), pull)
  return one
