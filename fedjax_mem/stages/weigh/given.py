"""Clients count as a list says, such as by a column of a table."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import Layer, validate
from fedjax_mem.stages.weigh._base import weighing


def given(
  weights: Sequence[float] | np.ndarray | None = None,
  divisor: float | None = None,
  num_clients: int | None = None,
) -> Layer:
  """Returns the layer that averages with weights that are given, sum w_k d_k / sum w_k.

  In a configuration they are the data's (`FederatedData.weights`, as a table's column of weights
  gives them), unless the options hold a list. A weighted message has no bound: nothing says what a
  weight may be at most.

  >>> fm.apply([[1.0], [5.0]], given([3.0, 1.0])).update.round(3).tolist()
  [2.0]

  Args:
    weights: [N] numbers > 0, one a client.
    divisor: None to divide by the weights that arrived, or a fixed number > 0.
    num_clients: N; None: as many as there are weights.

  Raises:
    ValueError: no weights or not N, one that is not finite and > 0, or a divisor that is not > 0.
  """
  if weights is None:
    raise ValueError(
      "weights must be given for the weighting 'given', as a list, or by data with a column of "
      'weights, got neither.'
    )
  try:
    found: Any = np.asarray(weights, np.float32)
  except (TypeError, ValueError):
    found = np.zeros(0)
  bad = np.flatnonzero(~(np.isfinite(found) & (found > 0)))
  if found.ndim != 1 or not len(found) or len(bad):
    got = f'{found[bad[0]]} for client {bad[0]}' if found.ndim == 1 and len(bad) else repr(weights)
    raise ValueError(f'weights must be numbers > 0, one a client, got {got}.')
  if num_clients is not None and len(found) != validate.integer(num_clients=num_clients):
    raise ValueError(f'weights must be {num_clients}, one a client, got {len(found)}.')
  return weighing(lambda n: (n > 0).astype(jnp.float32), None, divisor, of_clients=found)
