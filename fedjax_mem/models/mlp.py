"""A multi-layer perceptron; by default the 2NN of McMahan et al. (2017, section 3)."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from fedjax_mem.core import validate
from fedjax_mem.models import adapters, base, layers


class Mlp(nn.Module):
  """Dense layers with rectifiers between them.

  Attributes:
    hidden: widths of the hidden layers.
    num_classes: K.
  """

  hidden: tuple[int, ...]
  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits [B, K] for x [B, ...]."""
    x = x.reshape(x.shape[0], -1)
    for i, width in enumerate(self.hidden):
      x = nn.relu(nn.Dense(width, kernel_init=layers.glorot, name=f'hidden_{i}')(x))
    return nn.Dense(self.num_classes, kernel_init=layers.glorot, name='logits')(x)


def mlp(
  input_shape: tuple[int, ...], num_classes: int, *, hidden: Sequence[int] = (200, 200)
) -> base.Model:
  """Returns a multi-layer perceptron on inputs of any shape, flattened.

  Args:
    input_shape: shape of one example.
    num_classes: K, number of classes.
    hidden: widths of the hidden layers, at least one.

  Raises:
    ValueError: no hidden layer, or a width that is not a positive integer.
  """
  if not isinstance(hidden, list | tuple) or not hidden:
    raise ValueError(f'hidden must be a list of at least one width, got {hidden!r}.')
  widths = tuple(validate.integer(hidden=width) for width in hidden)
  return adapters.from_linen(Mlp(widths, num_classes), input_shape, num_classes, name='mlp')
