"""One of K classes: softmax, cross-entropy, accuracy and macro F1."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.tasks import _base


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns -log softmax(logits)[label] in nats, [...] float32, for logits [..., K]."""
  logits = logits.astype(jnp.float32)
  # A sum over a one-hot mask: the gradient of a gather is a scatter, which is slow in small loops.
  hot = labels[..., None] == jax.lax.broadcasted_iota(labels.dtype, logits.shape, labels.ndim)
  picked = jnp.sum(jnp.where(hot, logits, jnp.float32(0)), axis=-1)
  return jax.nn.logsumexp(logits, axis=-1) - picked


@dataclasses.dataclass(frozen=True)
class Classification(_base.LearningTask):
  """Labels [T] int32 in [0, K), logits [B, K].

  Scores: 'loss', the cross-entropy in nats; 'accuracy', the share of examples whose largest logit
  is the label's; 'macro_f1', the mean over the classes that are a label or a prediction of
  2 TP / (2 TP + FP + FN) (van Rijsbergen 1979, β = 1; scikit-learn's `average='macro'`).

  >>> task = Classification()
  >>> kept = {'predicted': np.array([0, 1, 1, 2]), 'label': np.array([0, 1, 2, 2])}
  >>> task.scores(kept, np.array([0, 4]))['macro_f1'].round(4).tolist()
  [0.7778]
  """

  name = 'classification'
  main = 'accuracy'

  def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the cross-entropy [B]."""
    _base.fit(self.name, outputs, (*y.shape[:1], outputs.shape[-1]))
    return cross_entropy(outputs, y)

  def values(self, outputs: jax.Array, y: jax.Array) -> _base.Values:
    """Returns 'loss' and 'accuracy'."""
    right = (jnp.argmax(outputs, axis=-1) == y).astype(jnp.float32)
    return {'loss': self.loss(outputs, y), 'accuracy': right}

  def kept(self, outputs: jax.Array, y: jax.Array) -> _base.Values:
    """Returns what is 'predicted', and the 'label'."""
    return {'predicted': jnp.argmax(outputs, axis=-1).astype(jnp.int32), 'label': y}

  def scores(self, kept: Mapping[str, np.ndarray], offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Returns 'macro_f1'."""
    predicted, label = kept['predicted'].astype(np.int64), kept['label'].astype(np.int64)
    # A number for each class of each set: sorting them needs no table of sets by classes.
    classes = 1 + max(int(predicted.max(initial=0)), int(label.max(initial=0)))
    first = _base.owners(offsets) * classes
    cells, count = np.unique(np.concatenate([first + predicted, first + label]), return_counts=True)
    hits = np.searchsorted(cells, (first + label)[predicted == label])
    f1 = 2 * np.bincount(hits, minlength=len(cells)) / count  # count: 2 TP + FP + FN
    owner, n = cells // classes, len(offsets) - 1
    return {'macro_f1': np.bincount(owner, f1, n) / np.bincount(owner, minlength=n)}

  def check(self, part: str, y: np.ndarray, num_outputs: int) -> None:
    """Raises `ValueError` unless labels are int32 [T] in [0, K)."""
    if y.ndim != 1:
      raise ValueError(f"{part}['y'] must be one class an example, got shape {y.shape!r}.")
    _base.check_classes(part, y, num_outputs)

  def check_outputs(self, num_outputs: int) -> None:
    """Raises `ValueError` for fewer than two classes."""
    validate.integer(at_least=2, num_classes=num_outputs)
