"""Multinomial logistic regression."""

import flax.linen as nn
import jax

from fedjax_mem.models import adapters, base


class Logistic(nn.Module):
  """A linear map of the flattened input, starting from zeros.

  Attributes:
    num_classes: K.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits [B, K] for x [B, ...]."""
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name='logits')(x)


def logistic(input_shape: tuple[int, ...], num_classes: int) -> base.Model:
  """Returns logistic regression on inputs of any shape, flattened; it starts from zeros."""
  return adapters.from_linen(Logistic(num_classes), input_shape, num_classes, name='logistic')
