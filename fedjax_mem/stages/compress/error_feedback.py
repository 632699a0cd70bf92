"""Error feedback around any codec: its error is a residual, added to the client's next update.

Adds: if the codec does. Biased in a single round, not over rounds. `_feedback.py` describes the
residual.

Reference: Seide et al. (2014), Interspeech; Stich et al. (2018), arXiv 1809.07599, Algorithm 1;
Karimireddy et al. (2019), arXiv 1901.09847.
"""

from collections.abc import Mapping
from typing import Any

from fedjax_mem.core import Encodes, Layer
from fedjax_mem.stages.compress import _named as named
from fedjax_mem.stages.compress._feedback import ALREADY, under_feedback


def error_feedback(codec: Layer | str | Mapping[str, Any]) -> Layer:
  """Returns the layer of a codec under error feedback.

  Metrics: those of the codec, and `memory`, the mean L2 norm of the clients' residuals.

  >>> made = fm.apply([[3.0, 4.0]], error_feedback({'use': 'top_k', 'k': 1}))
  >>> made.update.tolist(), made.metrics['error_feedback/memory'].item()
  ([0.0, 4.0], 3.0)

  Args:
    codec: a layer that encodes, its name, or a table {use = name, option = value, …}.

  Raises:
    ValueError: not a codec, or one under which the residual would grow without limit.
  """
  layer = named.layer(codec=codec)
  fact = layer.client.fact(Encodes) if layer.client and layer.cohort is None else None
  if fact is None or fact.codec.feedback == ALREADY:
    raise ValueError(
      f'codec must be a layer that encodes, without error feedback of its own, got {layer.name!r}.'
    )
  if fact.codec.feedback:
    raise ValueError(
      f'codec must send less error than it is given to be under error feedback, got '
      f'{layer.name!r}: {fact.codec.feedback}.'
    )
  return under_feedback(layer, 'error_feedback')
