"""ResNet (He et al. 2016) with group instead of batch normalisation, as is usual in FL.

Hsieh et al. (2020, arXiv:1910.00189) use it, and Reddi et al. (2021) for CIFAR-100 with 2 groups.
The stem is a 3x3 convolution without pooling, for images of 24 to 64 pixels.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from fedjax_mem.core import validate
from fedjax_mem.models import adapters, base, layers

_he = nn.initializers.he_normal()


class Block(nn.Module):
  """Two 3x3 convolutions beside a shortcut.

  Attributes:
    features: number of output channels.
    stride: stride of the first convolution and of the shortcut.
    groups: number of groups of channels of the normalisation.
  """

  features: int
  stride: int
  groups: int

  def _conv(self, window: int, stride: int, name: str) -> layers.Conv:
    size, steps = (window, window), (stride, stride)
    return layers.Conv(
      self.features, size, steps, 'SAME', use_bias=False, kernel_init=_he, name=name
    )

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the block's output [H / stride, W / stride, B, O] for x [H, W, B, C]."""
    y = self._conv(3, self.stride, 'conv_0')(x)
    y = nn.relu(layers.GroupNorm(self.groups, name='norm_0')(y))
    y = layers.GroupNorm(self.groups, name='norm_1')(self._conv(3, 1, 'conv_1')(y))
    if x.shape != y.shape:
      x = self._conv(1, self.stride, 'shortcut')(x)
      x = layers.GroupNorm(self.groups, name='norm_shortcut')(x)
    return nn.relu(x + y)


class ResNetGN(nn.Module):
  """Stem - stages of blocks, each half as large and twice as wide as the one before - mean - dense.

  Attributes:
    num_classes: K.
    blocks: number of blocks in each stage.
    width: number of channels in the first stage.
    groups: number of groups of channels of the normalisation.
  """

  num_classes: int
  blocks: tuple[int, ...] = (2, 2, 2, 2)
  width: int = 64
  groups: int = 2

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits [B, K] for x [B, H, W, C]."""
    x = layers.enter(x)
    stem = layers.Conv(
      self.width, (3, 3), padding='SAME', use_bias=False, kernel_init=_he, name='stem'
    )
    x = nn.relu(layers.GroupNorm(self.groups, name='norm')(stem(x)))
    for stage, count in enumerate(self.blocks):
      for block in range(count):
        stride = 2 if stage > 0 and block == 0 else 1
        name = f'stage_{stage}_block_{block}'
        x = Block(self.width * 2**stage, stride, self.groups, name=name)(x)
    return nn.Dense(self.num_classes, name='logits')(x.mean((0, 1)))


def resnet_gn(
  input_shape: tuple[int, ...],
  num_classes: int,
  *,
  blocks: Sequence[int] = (2, 2, 2, 2),
  width: int = 64,
  groups: int = 2,
) -> base.Model:
  """Returns a ResNet with group normalisation; ResNet-18 by default.

  Args:
    input_shape: (H, W, C).
    num_classes: K, number of classes.
    blocks: number of blocks in each stage.
    width: number of channels in the first stage.
    groups: number of groups of channels of the normalisation, a divisor of `width`.

  Raises:
    ValueError: an argument is out of range.
  """
  if not isinstance(blocks, list | tuple) or not blocks:
    raise ValueError(f'blocks must be a list of at least one count, got {blocks!r}.')
  counts = tuple(validate.integer(blocks=count) for count in blocks)
  validate.integer(width=width)
  validate.integer(groups=groups)
  module = ResNetGN(num_classes, counts, width, groups)
  return adapters.from_linen(module, input_shape, num_classes, name='resnet_gn')
