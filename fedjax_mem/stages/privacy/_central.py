"""Central differential privacy: what its methods share, a clip on the client, noise on the sum.

Formal guarantee: one client more or less moves the sum by at most the clip norm in L2 (L1 under
Laplace noise), and noise of `noise_multiplier` times that bound is added to the sum, once a round,
before it is divided and before the server optimizer sees it. Everything after is post-processing.
It holds with equal or capped weights (at most 1), a fixed divisor, and a cohort drawn without
looking at data, which the plan checks; epsilon is the accountant's business.

Metrics named `uncovered_…` come from updates without noise: epsilon does not cover them.
"""

from fedjax_mem.core import (
  Bounds,
  Context,
  Layer,
  Mechanism,
  Message,
  Stage,
)
from fedjax_mem.stages.privacy import _clipping as clipping
from fedjax_mem.stages.privacy import _noising as noising


def layer(
  name: str, clip: clipping.Clip, clip_norm: float, own: Bounds, made: Mechanism | None
) -> Layer:
  """Returns the layer that clips on the client and releases on the server."""

  def client(ctx: Context, message: Message, state):
    del ctx
    message, _, metrics = clipping.clipped(clip, message, clip_norm)
    return message, state, metrics

  server = noising.release(made) if made else noising.quiet()
  return Layer(name, client=Stage(client, facts=(own,)), server=server)
