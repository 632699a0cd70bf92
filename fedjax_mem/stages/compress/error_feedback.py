"""Error feedback around any codec: what the codec leaves out is added to the next update.

Adds: if the codec does. Biased in a round, not over rounds. `_feedback.py` says what clients
remember.

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

  Metrics: those of the codec, and `memory`, the norm of what clients remember, on average.

  Args:
    codec: a layer that encodes, its name, or a table {use = name, option = value, …}.

  Raises:
    ValueError: not a codec, or one whose memory would grow without end.
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
