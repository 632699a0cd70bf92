"""Any number of K labels at once: sigmoid, binary cross-entropy and mean average precision."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.tasks import _base


@dataclasses.dataclass(frozen=True)
class MultiLabel(_base.LearningTask):
  """Labels [T, K] uint8, 1 where an example has a label, and logits [B, K].

  Scores: 'loss', the mean over labels of the binary cross-entropy of sigmoid(logit), in nats;
  'mean_average_precision', the mean over labels of Σ (R_i - R_{i-1}) P_i, with the precision P_i
  and the recall R_i of the examples whose logit is at least the i-th largest one (scikit-learn's
  `average_precision_score`, no interpolation; equal logits are one threshold). A label that no
  example of a set has is left out of its mean; without any the score is not defined.

  >>> kept = {'output': np.array([[2.0], [1.0], [0.0]]), 'label': np.array([[1], [0], [1]])}
  >>> MultiLabel().scores(kept, np.array([0, 3]))['mean_average_precision'].round(4).tolist()
  [0.8333]
  """

  name = 'multi_label'
  main = 'mean_average_precision'

  def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean binary cross-entropy [B] over the labels."""
    labels = y.reshape(y.shape[0], -1)
    _base.fit(self.name, outputs, labels.shape)
    logits = outputs.astype(jnp.float32)
    # log(1 + e^z) - y z, which does not overflow.
    return jnp.mean(jax.nn.softplus(logits) - labels.astype(jnp.float32) * logits, axis=-1)

  def kept(self, outputs: jax.Array, y: jax.Array) -> _base.Values:
    """Returns the 'output' and the 'label'."""
    return {'output': outputs.astype(jnp.float32), 'label': y.reshape(outputs.shape)}

  def scores(self, kept: Mapping[str, np.ndarray], offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Returns 'mean_average_precision'; NaN for a set without any label."""
    owner = _base.owners(offsets)
    each = [
      _average_precision(kept['output'][:, k], kept['label'][:, k], owner, offsets)
      for k in range(kept['output'].shape[1])
    ]
    found = np.stack(each, 1)
    known = ~np.isnan(found)
    with np.errstate(invalid='ignore'):
      return {'mean_average_precision': np.where(known, found, 0).sum(1) / known.sum(1)}

  def check(self, part: str, y: np.ndarray, num_outputs: int) -> None:
    """Raises `ValueError` unless labels are uint8 [T, K], 0 or 1."""
    _base.check_numbers(part, y, num_outputs, 'uint8')
    if len(y) and not isinstance(y, np.memmap) and y.max() > 1:
      raise ValueError(f"{part}['y'] must be 0 or 1 for each label, got {int(y.max())}.")


def _average_precision(
  logits: np.ndarray, hot: np.ndarray, owner: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
  """Returns the average precision [n] float64 of one label in each set; NaN without an example.

  Args:
    logits: [T].
    hot: [T], 0 or 1.
    owner: [T], the set of each.
    offsets: [n+1], where the sets begin.
  """
  order = np.lexsort((-logits, owner))  # sets stay where they are
  right = np.cumsum(hot[order], dtype=np.float64)
  before = np.concatenate([[0.0], right])[offsets]
  hits = right - before[owner]
  precision = hits / (np.arange(len(order)) - offsets[owner] + 1)
  # The last example of each threshold: the next one has another logit, or is of another set.
  last = np.ones(len(order), bool)
  last[:-1] = (logits[order][1:] != logits[order][:-1]) | (owner[1:] != owner[:-1])
  at = np.flatnonzero(last)
  previous = np.concatenate([[0.0], hits[at][:-1]])
  previous[np.concatenate([[True], owner[at][1:] != owner[at][:-1]])] = 0
  summed = np.bincount(owner[at], (hits[at] - previous) * precision[at], len(offsets) - 1)
  total = np.diff(before)
  return np.where(total > 0, summed / np.maximum(total, 1), np.nan)
