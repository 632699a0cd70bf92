"""The MNIST CNN of McMahan et al. (2017, arXiv:1602.05629, section 3), 1,663,370 parameters."""

import flax.linen as nn
import jax

from fedjax_mem.kernels.nn import pool
from fedjax_mem.models import adapters, base, layers


class CnnMcMahan(nn.Module):
  """conv 5x5x32 - relu - pool 2x2 - conv 5x5x64 - relu - pool 2x2 - dense 512 - relu - dense K.

  Attributes:
    num_classes: K.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits [B, K] for x [B, H, W, C]."""
    x = layers.enter(x)
    for i, features in enumerate((32, 64)):
      x = layers.Conv(features, (5, 5), padding='SAME', name=f'conv_{i}')(x)
      x = nn.relu(pool.max_pool(x))
    x = nn.relu(nn.Dense(512, kernel_init=layers.glorot, name='dense')(layers.leave(x)))
    return nn.Dense(self.num_classes, kernel_init=layers.glorot, name='logits')(x)


def cnn_mcmahan(input_shape: tuple[int, ...], num_classes: int) -> base.Model:
  """Returns the CNN of McMahan et al. (2017) for inputs (H, W, C) of at least 4 x 4.

  Raises:
    ValueError: the input is too small or not an image.
  """
  return adapters.from_linen(CnnMcMahan(num_classes), input_shape, num_classes, name='cnn_mcmahan')
