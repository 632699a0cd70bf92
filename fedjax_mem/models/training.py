"""How the loss of a model is computed where clients train it: precision and memory.

Evaluation is by other functions of a model, and stays in float32 and as a whole.
"""

from typing import Any, NamedTuple

from fedjax_mem.core import Accumulated, Running, validate
from fedjax_mem.kernels.nn import rewrite
from fedjax_mem.models.precision import DTYPES, in_bfloat16
from fedjax_mem.models.remat import remat


class Training(NamedTuple):
  """The settings of `trained_with`, whose docstring explains them.

  Attributes:
    dtype: 'float32' or 'bfloat16'.
    remat: whether activations are computed again.
    accumulate: parts of a batch.
  """

  dtype: str = 'float32'
  remat: bool = False
  accumulate: int = 1

  def checked(self) -> 'Training':
    """Returns the settings; raises `ValueError` if one is out of range."""
    validate.one_of(DTYPES, dtype=self.dtype)
    validate.boolean(remat=self.remat)
    validate.integer(accumulate=self.accumulate)
    return self

  def of(self, loss: Any) -> Any:
    """Returns a loss (params, batch, key=None) -> [B], or a `core.Running`, by the settings.

    Raises:
      ValueError: a batch in parts, of a model that keeps running statistics.
    """
    if self.accumulate > 1 and isinstance(loss, Running):
      raise ValueError(
        'accumulate must be 1 for a model that keeps running statistics (model.statistics), which '
        f'would be those of parts of a batch, got {self.accumulate!r}.'
      )
    if not isinstance(loss, Running):
      # Before it is in segments: convolutions in a derivative of its own would be left as they are.
      loss = rewrite.fast_convolutions(loss)
    loss = in_bfloat16(loss) if self.dtype == 'bfloat16' else loss
    loss = remat(loss) if self.remat else loss
    # What is in it is fast by now, or has been left as it is on purpose.
    loss = loss if isinstance(loss, Running) else rewrite.as_it_is(loss)
    return Accumulated(loss, self.accumulate) if self.accumulate > 1 else loss
