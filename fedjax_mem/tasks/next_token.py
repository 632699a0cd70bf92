"""The next token at each position: cross-entropy, accuracy and perplexity."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.tasks import _base
from fedjax_mem.tasks.classification import cross_entropy


@dataclasses.dataclass(frozen=True)
class NextToken(_base.LearningTask):
  """Labels [T, L] int32 tokens in [0, K), logits [B, L, K].

  Scores: 'loss' and 'accuracy', the means over examples of those of an example, which are means
  over its tokens that are not padding (0 if there is none); 'perplexity', exp of the mean
  cross-entropy over all these tokens, each of which counts the same (Jelinek et al. 1977).

  >>> kept = {'nats': np.array([0.0, np.log(4.0)]), 'tokens': np.array([1.0, 1.0])}
  >>> NextToken().scores(kept, np.array([0, 2]))['perplexity'].round(6).tolist()
  [2.0]

  Attributes:
    padding_id: label of padding tokens, which do not count; None: no padding.
  """

  padding_id: int | None = None

  name = 'next_token'
  main = 'accuracy'
  less = ('loss', 'perplexity')

  def _real(self, y: jax.Array) -> jax.Array:
    if self.padding_id is None:
      return jnp.ones(y.shape, jnp.float32)
    return (y != self.padding_id).astype(jnp.float32)

  def _mean(self, values: jax.Array, y: jax.Array) -> jax.Array:
    real = self._real(y)
    return jnp.sum(values * real, axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)

  def _nats(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
    _base.fit(self.name, outputs, (*y.shape[:2], outputs.shape[-1]))
    return cross_entropy(outputs, y)

  def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy [B] over an example's tokens."""
    return self._mean(self._nats(outputs, y), y)

  def values(self, outputs: jax.Array, y: jax.Array) -> _base.Values:
    """Returns 'loss' and 'accuracy'."""
    right = (jnp.argmax(outputs, axis=-1) == y).astype(jnp.float32)
    return {'loss': self.loss(outputs, y), 'accuracy': self._mean(right, y)}

  def kept(self, outputs: jax.Array, y: jax.Array) -> _base.Values:
    """Returns the sum of the cross-entropies, 'nats', and the number of 'tokens'."""
    real = self._real(y)
    return {'nats': jnp.sum(self._nats(outputs, y) * real, axis=1), 'tokens': jnp.sum(real, axis=1)}

  def scores(self, kept: Mapping[str, np.ndarray], offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Returns 'perplexity'; NaN for a set without tokens."""
    nats, tokens = (
      np.add.reduceat(kept[name].astype(np.float64), offsets[:-1]) for name in ('nats', 'tokens')
    )
    with np.errstate(invalid='ignore', over='ignore'):
      return {'perplexity': np.exp(nats / tokens)}

  def check(self, part: str, y: np.ndarray, num_outputs: int) -> None:
    """Raises `ValueError` unless labels are int32 [T, L] in [0, K)."""
    if y.ndim != 2:
      raise ValueError(f"{part}['y'] must be a sequence an example, got shape {y.shape!r}.")
    _base.check_classes(part, y, num_outputs)

  def check_outputs(self, num_outputs: int) -> None:
    """Raises `ValueError` for fewer than two tokens."""
    validate.integer(at_least=2, num_classes=num_outputs)
