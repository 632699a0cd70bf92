"""Numbers: the mean squared error and R²."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.tasks import _base


@dataclasses.dataclass(frozen=True)
class Regression(_base.LearningTask):
  """Labels [T] or [T, K] float32, outputs [B, K].

  Scores: 'loss', the mean squared error (the mean over outputs of (output - label)², without a
  factor 1/2); 'r2', the coefficient of determination, 1 - Σ (label - output)² / Σ (label - mean)²,
  averaged over outputs. As in scikit-learn an output whose labels are all equal scores 1 if it is
  met exactly, else 0; of fewer than two examples R² is not defined.

  >>> kept = {'output': np.array([[1.0], [2.0], [4.0]]), 'label': np.array([1.0, 2.0, 3.0])}
  >>> Regression().scores(kept, np.array([0, 3]))['r2'].tolist()
  [0.5]
  """

  name = 'regression'
  main = 'r2'

  def loss(self, outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean squared error [B] over an example's outputs."""
    labels = y.reshape(y.shape[0], -1)
    _base.fit(self.name, outputs, labels.shape)
    return jnp.mean(jnp.square(outputs.astype(jnp.float32) - labels), axis=-1)

  def kept(self, outputs: jax.Array, y: jax.Array) -> _base.Values:
    """Returns the 'output' and the 'label'."""
    return {'output': outputs.astype(jnp.float32), 'label': y}

  def scores(self, kept: Mapping[str, np.ndarray], offsets: np.ndarray) -> dict[str, np.ndarray]:
    """Returns 'r2'; NaN for a set of one example."""
    outputs = kept['output'].astype(np.float64)
    labels = kept['label'].astype(np.float64).reshape(outputs.shape)
    n, begin = _base.sizes(offsets)[:, None], offsets[:-1]
    means = np.add.reduceat(labels, begin) / n
    wrong = np.add.reduceat((labels - outputs) ** 2, begin)
    spread = np.add.reduceat((labels - means[_base.owners(offsets)]) ** 2, begin)
    explained = 1 - wrong / np.where(spread == 0, 1, spread)
    r2 = np.where(spread == 0, (wrong == 0).astype(np.float64), explained)
    return {'r2': np.where(n[:, 0] < 2, np.nan, r2.mean(1))}

  def check(self, part: str, y: np.ndarray, num_outputs: int) -> None:
    """Raises `ValueError` unless labels are finite float32 [T] or [T, K]."""
    _base.check_numbers(part, y, num_outputs, 'float32')
    if not isinstance(y, np.memmap) and not np.isfinite(y).all():
      row = int(np.argwhere(~np.isfinite(y))[0][0])
      raise ValueError(f"{part}['y'] must be finite, got {y[row].tolist()!r} in row {row}.")
