"""The next-character model of Shakespeare in TensorFlow Federated and Reddi et al. (2021, table 4).

820,522 parameters for 90 characters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_mem.core import validate
from fedjax_mem.kernels.nn import lstm, product
from fedjax_mem.models import adapters, base, layers


def _forget_open(
  key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32
) -> jax.Array:
  """Returns the initial bias: zeros, but ones for the forget gate (Jozefowicz et al. 2015)."""
  del key
  width = shape[0] // 4
  return jnp.zeros(shape, dtype).at[width : 2 * width].set(1)


class Lstm(nn.Module):
  """An LSTM over time that starts from zeros; one matrix has the gates input, forget, cell, output.

  Attributes:
    width: H, number of units.
  """

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the outputs [T, B, H] for x [T, B, F]."""
    size = 4 * self.width
    kernel = self.param('kernel', layers.glorot, (x.shape[-1], size))
    recurrent = self.param('recurrent', nn.initializers.orthogonal(), (self.width, size))
    bias = self.param('bias', _forget_open, (size,))
    # One product for the inputs of all time steps; only the recurrent product needs the loop.
    drive = product.product(x, kernel) + bias[None, None]
    return lstm.lstm(drive, recurrent)


class CharLstm(nn.Module):
  """Embedding - LSTM - LSTM - dense K at every position.

  Attributes:
    num_classes: K, size of the vocabulary; id 0 is padding.
    embedding: width of the embedding.
    width: number of units of each LSTM.
  """

  num_classes: int
  embedding: int = 8
  width: int = 256

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits [B, T, K] for tokens x [B, T]."""
    start = nn.initializers.uniform(0.1)
    table = self.param(
      'embedding', lambda *a: start(*a) - 0.05, (self.num_classes, self.embedding)
    )  # U(-0.05, 0.05), as in Keras.
    x = table.at[x.T].get(mode='clip')  # [T, B, F]: time comes first up to the logits
    for i in range(2):
      x = Lstm(self.width, name=f'lstm_{i}')(x)
    x = nn.Dense(self.num_classes, kernel_init=layers.glorot, name='logits')(x)
    logits: jax.Array = x.transpose(1, 0, 2)
    return logits


def char_lstm(
  input_shape: tuple[int, ...], num_classes: int = 90, *, embedding: int = 8, width: int = 256
) -> base.Model:
  """Returns the character LSTM; x [B, T] and y [B, T] are int32 tokens, and id 0 is padding.

  Args:
    input_shape: (T,), 80 in the paper.
    num_classes: size of the vocabulary, padding and the unknown character included.
    embedding: width of the embedding.
    width: number of units of each LSTM.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(embedding=embedding)
  validate.integer(width=width)
  module = CharLstm(num_classes, embedding, width)
  return adapters.from_linen(
    module, input_shape, num_classes, name='char_lstm', input_dtype=jnp.int32, padding_id=0
  )
