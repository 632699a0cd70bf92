"""flax layers in the layouts of `kernels.nn.conv`: [H, W, B, C], or [C, H, W, B] for few channels.

A model takes x [B, H, W, C], changes its layout once with `enter`, and returns to features with
`leave`. Parameters have flax's standard shapes and axes: those of a plain flax module with NHWC
layers fit.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_mem.kernels.nn import alone, conv_pool, group_norm

Initializer = Callable[..., Any]
glorot = nn.initializers.glorot_uniform()


def torch_kernel(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
  """Returns a kernel from U(-1/sqrt(n), 1/sqrt(n)), n the inputs of a unit: PyTorch's default."""
  return nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')(key, shape, dtype)


def torch_bias(inputs: int) -> Initializer:
  """Returns an initializer from U(-1/sqrt(n), 1/sqrt(n)), n = `inputs`: PyTorch's for a bias."""

  def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    bound = inputs**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def enter(x: jax.Array, layout: str = 'HWBC') -> jax.Array:
  """Returns x [B, H, W, C] in the layout."""
  return x.transpose(['BHWC'.index(axis) for axis in layout])


def leave(x: jax.Array, layout: str = 'HWBC') -> jax.Array:
  """Returns x, in the layout, as features [B, H * W * C]."""
  x = x.transpose([layout.index(axis) for axis in 'BHWC'])
  return x.reshape(x.shape[0], -1)


def per_channel(v: jax.Array, layout: str) -> jax.Array:
  """Returns v [C] with axes added so that it broadcasts over x in the layout."""
  return v.reshape([-1 if axis == 'C' else 1 for axis in layout])


class Conv(nn.Module):
  """A 2-D convolution, plus a bias for each output channel.

  Attributes:
    features: O, output channels.
    window: (R, S).
    strides: (vertical, horizontal).
    padding: 'VALID', 'SAME' or ((top, bottom), (left, right)).
    layout: 'HWBC' or 'CHWB'.
    use_bias: false where a normalisation follows.
    kernel_init: initializer of the kernel [R, S, C, O].
    bias_init: initializer of the bias [O].
    pool: window of a max pooling before the bias, with which it commutes; None: there is none. With
      one the strides must be 1.
  """

  features: int
  window: tuple[int, int]
  strides: tuple[int, int] = (1, 1)
  padding: Any = 'VALID'
  layout: str = 'HWBC'
  use_bias: bool = True
  kernel_init: Initializer = glorot
  bias_init: Initializer = nn.initializers.zeros
  pool: tuple[int, int] | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the convolution of x, in the layout."""
    shape = (*self.window, x.shape[self.layout.index('C')], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    how: dict[str, Any] = {'padding': self.padding, 'layout': self.layout}
    if self.pool:
      if tuple(self.strides) != (1, 1):
        raise ValueError(f'strides must be (1, 1) before a pooling, got {self.strides!r}.')
      y = conv_pool.conv_pool(x, kernel, window=self.pool, **how)
    else:
      y = alone.conv(x, kernel, strides=self.strides, **how)
    if not self.use_bias:
      return y
    return y + per_channel(self.param('bias', self.bias_init, (self.features,)), self.layout)


class GroupNorm(nn.Module):
  """Group normalisation of x [H, W, B, C] over groups of channels (Wu & He 2018, eq. 1-5).

  Attributes:
    groups: number of groups of channels; must divide C.
    epsilon: constant added to the variance, > 0.
  """

  groups: int = 2
  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x normalised for each example and group, scaled and shifted for each channel."""
    channels = x.shape[-1]
    if channels % self.groups:
      raise ValueError(f'groups must divide the {channels} channels, got {self.groups!r}.')
    scale = self.param('scale', nn.initializers.ones, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    return group_norm.group_norm(x, scale, bias, self.groups, self.epsilon)
