"""The LeNet-style CNN of NIID-Bench (Li et al. 2022, arXiv:2102.02079, section 5).

44,426 parameters for 10 classes of 28 x 28 x 1, initialised as in PyTorch.
"""

import flax.linen as nn
import jax

from fedjax_mem.models import adapters, base, layers


class LeNet(nn.Module):
  """conv 5x5x6 - pool - relu - conv 5x5x16 - pool - relu - dense 120 - dense 84 - dense K.

  Attributes:
    num_classes: K.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits [B, K] for x [B, H, W, C]."""
    x = layers.enter(x, 'CHWB')
    for i, features in enumerate((6, 16)):
      bias = layers.torch_bias(25 * x.shape[0])
      x = layers.Conv(
        features,
        (5, 5),
        layout='CHWB',
        kernel_init=layers.torch_kernel,
        bias_init=bias,
        pool=(2, 2),
        name=f'conv_{i}',
      )(x)
      x = nn.relu(x)
    x = layers.leave(x, 'CHWB')
    for name, width in (('dense_0', 120), ('dense_1', 84), ('logits', self.num_classes)):
      bias = layers.torch_bias(x.shape[1])
      x = nn.Dense(width, kernel_init=layers.torch_kernel, bias_init=bias, name=name)(x)
      x = x if name == 'logits' else nn.relu(x)
    return x


def lenet(input_shape: tuple[int, ...], num_classes: int) -> base.Model:
  """Returns the LeNet of NIID-Bench for inputs (H, W, C) of at least 16 x 16.

  Raises:
    ValueError: the input is too small or not an image.
  """
  return adapters.from_linen(LeNet(num_classes), input_shape, num_classes, name='lenet')
