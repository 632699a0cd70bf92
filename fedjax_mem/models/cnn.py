"""The EMNIST CNN of Reddi et al. (2021, arXiv:2003.00295, table 4).

1,206,590 parameters for 62 classes of 28 x 28 x 1.

Here pooling comes before the rectifier: the two commute, exactly and with the same gradients, and
the rectifier then runs on a quarter of the values.
"""

import flax.linen as nn
import jax

from fedjax_mem.core import validate
from fedjax_mem.kernels.nn import pool
from fedjax_mem.models import adapters, base, layers

_NORMS = ('none', 'group')


class Cnn(nn.Module):
  """conv 3x3x32 - relu - conv 3x3x64 - relu - max pooling 2x2 - dense 128 - relu - dense K.

  Attributes:
    num_classes: K.
    dropout: whether dropout of rate 0.25 follows the pooling, and of 0.5 the dense layer.
    norm: 'none', or 'group' for group normalisation after each convolution.
    groups: number of groups of channels of the normalisation.
  """

  num_classes: int
  dropout: bool = False
  norm: str = 'none'
  groups: int = 2

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Returns logits [B, K] for x [B, H, W, C]."""
    x = layers.enter(x)
    x = nn.relu(self._norm(layers.Conv(32, (3, 3), name='conv_0')(x), 'norm_0'))
    x = layers.Conv(64, (3, 3), name='conv_1')(x)
    x = nn.relu(pool.max_pool(self._norm(x, 'norm_1')))
    x = layers.leave(x)
    if self.dropout:
      x = nn.Dropout(0.25, deterministic=not train)(x)
    x = nn.relu(nn.Dense(128, kernel_init=layers.glorot, name='dense')(x))
    if self.dropout:
      x = nn.Dropout(0.5, deterministic=not train)(x)
    return nn.Dense(self.num_classes, kernel_init=layers.glorot, name='logits')(x)

  def _norm(self, x: jax.Array, name: str) -> jax.Array:
    return layers.GroupNorm(self.groups, name=name)(x) if self.norm == 'group' else x


def cnn(
  input_shape: tuple[int, ...],
  num_classes: int,
  *,
  dropout: bool = False,
  norm: str = 'none',
  groups: int = 2,
) -> base.Model:
  """Returns the CNN of Reddi et al. (2021).

  Args:
    input_shape: (H, W, C), at least 6 x 6.
    num_classes: K, number of classes.
    dropout: whether there is dropout of rates 0.25 and 0.5, as in the paper.
    norm: 'none', as in the paper, or 'group'.
    groups: number of groups of channels of the normalisation, a divisor of 32.

  Raises:
    ValueError: an argument is out of range, or the input is too small.
  """
  validate.one_of(_NORMS, norm=norm)
  validate.integer(groups=groups)
  validate.boolean(dropout=dropout)
  module = Cnn(num_classes, dropout, norm, groups)
  return adapters.from_linen(module, input_shape, num_classes, name='cnn')
