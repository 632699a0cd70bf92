"""A decoder-only transformer for next-token prediction, with normalisation before each part.

References: Vaswani et al. (2017), arXiv 1706.03762, sections 3.2 and 3.3; normalisation first,
learned positions and a last normalisation as in Radford et al. (2019), section 2.3. No dropout.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_mem.core import validate
from fedjax_mem.models import adapters, base, layers

_table = nn.initializers.normal(0.02)

# How parameters are divided over devices (`Execution.rules`): the heads of an attention and the
# hidden values of the dense layers, as in Shoeybi et al. (2019), arXiv 1909.08053, section 3, and
# the width of the embeddings. Normalisations and the biases of what is added up are whole.
RULES = (
  (r'attention/qkv/(kernel|bias)$', -1),
  (r'attention/out/kernel$', 0),
  (r'block_\d+/hidden/(kernel|bias)$', -1),
  (r'block_\d+/out/kernel$', 0),
  (r'^(embedding|positions)$', 1),
  (r'^logits/kernel$', 0),
)

# Queries that are taken together: positions after the last of them are left out, not masked.
_QUERIES = 64


def _attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Returns the causal mixture [B, heads, Q, size] for the last Q of T positions.

  Args:
    query: [B, heads, Q, size], scaled.
    key: [B, heads, T, size].
    value: [B, heads, T, size].
  """
  scores = jnp.einsum('bhqd,bhkd->bhqk', query, key)
  queries, keys = scores.shape[2:]
  later = jnp.triu(jnp.full((queries, keys), -jnp.inf, scores.dtype), 1 + keys - queries)
  return jnp.einsum('bhqk,bhkd->bhqd', nn.softmax(scores + later[None, None]), value)


def _dense(features: int, name: str) -> nn.Dense:
  return nn.Dense(features, kernel_init=layers.glorot, name=name)


class Attention(nn.Module):
  """Causal self-attention of several heads.

  Attributes:
    length: T, positions of a sequence.
    heads: number of heads, a divisor of the width.
  """

  length: int
  heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns, for x [B * T, W], the attention [B * T, W] of each position to those up to it."""
    width = x.shape[-1]
    size = width // self.heads
    # One product for queries, keys and values. Those of a head are next to each other, so that a
    # device that has some heads exchanges nothing with others to have their queries.
    drive = _dense(3 * width, 'qkv')(x).reshape(-1, self.length, self.heads, 3, size)
    query, key, value = drive.transpose(3, 0, 2, 1, 4)
    query = query * size**-0.5
    mixed = [
      _attend(query[:, :, end - _QUERIES : end], key[:, :, :end], value[:, :, :end])
      for end in range(_QUERIES, self.length + _QUERIES, _QUERIES)
    ]
    return _dense(width, 'out')(jnp.concatenate(mixed, axis=2).swapaxes(1, 2).reshape(x.shape))


class TransformerBlock(nn.Module):
  """Attention, then two dense layers, each added to what it was given, normalised before.

  Attributes:
    length: T, positions of a sequence.
    heads: number of heads of the attention.
  """

  length: int
  heads: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the block's output [B * T, W] for x [B * T, W]."""
    width = x.shape[-1]
    attention = Attention(self.length, self.heads, name='attention')
    x = x + attention(nn.LayerNorm(name='norm_0')(x))
    hidden = _dense(4 * width, 'hidden')(nn.LayerNorm(name='norm_1')(x))
    return x + _dense(width, 'out')(nn.gelu(hidden))


class Transformer(nn.Module):
  """Embeddings of tokens and positions - blocks - normalisation - dense K at every position.

  Attributes:
    num_classes: K, size of the vocabulary; id 0 is padding.
    width: W, width of a position.
    heads: number of heads of each attention.
    blocks: number of blocks.
  """

  num_classes: int
  width: int = 128
  heads: int = 4
  blocks: int = 2

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns logits [B, T, K] for tokens x [B, T]."""
    tokens = self.param('embedding', _table, (self.num_classes, self.width))
    positions = self.param('positions', _table, (x.shape[1], self.width))
    # A product with a one-hot matrix: the gradient of a gather is a scatter, which is slow.
    y = nn.one_hot(x.reshape(-1), self.num_classes, dtype=tokens.dtype) @ tokens
    y = (y.reshape(*x.shape, self.width) + positions[None]).reshape(-1, self.width)
    # Rows of matrices, not sequences: on a CPU the gradient of a dense layer's kernel would be
    # computed from transposed copies of three-dimensional arrays.
    for i in range(self.blocks):
      y = TransformerBlock(x.shape[1], self.heads, name=f'block_{i}')(y)
    y = _dense(self.num_classes, 'logits')(nn.LayerNorm(name='norm')(y))
    return y.reshape(*x.shape, self.num_classes)


def transformer(
  input_shape: tuple[int, ...],
  num_classes: int = 90,
  *,
  width: int = 128,
  heads: int = 4,
  blocks: int = 2,
) -> base.Model:
  """Returns the transformer; x [B, T] and y [B, T] are int32 tokens; id 0 is padding at the end.

  Args:
    input_shape: (T,), also the number of positions that are learned.
    num_classes: size of the vocabulary, padding and the unknown token included.
    width: width of a position.
    heads: number of heads of each attention, a divisor of `width`.
    blocks: number of blocks.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.integer(width=width)
  validate.integer(heads=heads)
  validate.integer(blocks=blocks)
  if width % heads:
    raise ValueError(f'heads must divide the width, {width}, got {heads!r}.')
  module = Transformer(num_classes, width, heads, blocks)
  model = adapters.from_linen(
    module, input_shape, num_classes, name='transformer', input_dtype=jnp.int32, padding_id=0
  )
  return model._replace(rules=RULES)
