"""Local differential privacy: each client clips and noises its own update before it leaves.

Formal guarantee: what the server sees of a client in one participation is a Gaussian (Laplace)
mechanism on its clipped update, whoever else takes part. Nothing is gained by sampling: the ledger
follows the client that took part most often.

Reference: Duchi, Jordan, Wainwright (2013), arXiv 1302.3203; Kasiviswanathan et al. (2011),
arXiv 0803.0924.
"""

from collections.abc import Callable
from typing import Any

import jax

from fedjax_mem.core import Bound, Context, Layer, Message, Stage, Traits, tree, validate
from fedjax_mem.core.mechanism import Mechanism
from fedjax_mem.kernels import noise
from fedjax_mem.stages.privacy import clipping


def local(l2_clip_norm: float, noise_multiplier: float, *, per_layer: bool = False) -> Layer:
  """Returns the layer in which each client clips its update in L2 and adds Gaussian noise.

  Args:
    l2_clip_norm: bound on the L2 norm of a client's whole update, > 0.
    noise_multiplier: standard deviation of each client's noise over the bound; 0 clips only.
    per_layer: clip each of L arrays to l2_clip_norm / sqrt(L) instead of all together.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l2_clip_norm=l2_clip_norm)
  clip = clipping.choose(per_layer)
  return _layer('local', clip, l2_clip_norm, noise_multiplier, noise.gaussian, 'gaussian')


def local_laplace(l1_clip_norm: float, noise_multiplier: float) -> Layer:
  """Returns the layer in which each client clips its update in L1 and adds Laplace noise.

  Args:
    l1_clip_norm: bound on the L1 norm of a client's whole update, > 0.
    noise_multiplier: scale of each client's noise over the bound; 0 clips only.

  Raises:
    ValueError: an argument is out of range.
  """
  validate.positive(l1_clip_norm=l1_clip_norm)
  return _layer(
    'local_laplace', clipping.l1, l1_clip_norm, noise_multiplier, noise.laplace, 'laplace'
  )


def _layer(
  name: str,
  clip: clipping.Clip,
  clip_norm: float,
  noise_multiplier: float,
  draw: Callable[[jax.Array, Any, Any], Any],
  mechanism: str,
) -> Layer:
  """Returns the layer whose client half clips, then draws noise from the client's own key."""
  clipping.check_multiplier(noise_multiplier)

  def client(ctx: Context, message: Message, state):
    message, _, metrics = clipping.clipped(clip, message, clip_norm)
    if noise_multiplier:
      own = draw(ctx.key, message.payload, noise_multiplier * clip_norm)
      # A client of weight 0 takes no part: it sends nothing.
      noisy = tree.keep(message.weight > 0, tree.add(message.payload, own))
      message = message._replace(payload=noisy)
    return message, state, metrics

  def server(ctx: Context, message: Message, state):
    return clipping.restored(ctx, message, message.payload), state, {}

  made = Mechanism(mechanism, noise_multiplier, trust='local') if noise_multiplier else None
  # Noise has no bound; without it the clip's holds.
  l1 = float(clip_norm) if mechanism == 'laplace' else None
  own = Bound() if noise_multiplier else Bound(l1, float(clip_norm), float(clip_norm))
  traits = Traits(mechanism=made)
  return Layer(name, Stage(client), Stage(server), sensitivity=lambda bound: own, traits=traits)
