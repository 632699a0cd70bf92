"""Clipping at a tracked quantile of the updates' norms, with noise on the sum and on the count.

Each client adds one bit, whether its norm is within the bound, shifted by 1/2 so that it moves the
sum by 1/2 at most. The noisy fraction moves the bound; the noise of the two sums is set such that
together they cost what one Gaussian release of multiplier z costs.

Formal guarantee: that of `central` with a Gaussian of multiplier `noise_multiplier` a round. The
bound of a round comes from the releases of earlier rounds only.

Reference: Andrew, Thakkar, McMahan, Ramaswamy (2021), arXiv 1905.03871, Algorithm 1, Theorem 1.
"""

import jax
import jax.numpy as jnp

from fedjax_mem import mechanisms
from fedjax_mem.core import Bound, Bounds, Context, Layer, Message, Noises, Stage, validate
from fedjax_mem.kernels.random import noise
from fedjax_mem.stages.privacy import _clipping as clipping
from fedjax_mem.stages.privacy import _noising as noising

# Bounded in every round, by a number that is known only then.
_TRACKED = Bounds(lambda ctx, bound: Bound(l2=ctx.server_state, linf=ctx.server_state))


def adaptive_clip(
  noise_multiplier: float,
  expected: float,
  *,
  initial_l2_clip_norm: float = 0.1,
  quantile: float = 0.5,
  learning_rate: float = 0.2,
  bit_noise: float | None = None,
) -> Layer:
  """Returns the layer that clips at a tracked quantile of the norms and noises the sum.

  Server state: C, the bound of the next round. Metrics, of the round: `bound` (C) and `below` (the
  noisy fraction of norms within it), which epsilon covers, and `uncovered_…`, which it does not.

  Args:
    noise_multiplier: z, of both releases together; 0 adds no noise at all and claims no privacy.
    expected: clients expected in a cohort, public, > 0.
    initial_l2_clip_norm: C of the first round, > 0.
    quantile: gamma, the fraction of norms that should be within the bound, in [0, 1].
    learning_rate: eta, > 0: C <- C exp(-eta (below - gamma)).
    bit_noise: sigma_b, standard deviation of the noise on the count; by default expected / 20. The
      sum's noise is then z_delta = (z ** -2 - (2 sigma_b) ** -2) ** -1/2 times C.

  Raises:
    ValueError: an argument is out of range, or noise_multiplier >= 2 bit_noise: the count alone
      would spend more than everything.
  """
  validate.positive(expected=expected)
  validate.positive(initial_l2_clip_norm=initial_l2_clip_norm)
  validate.fraction(quantile=quantile)
  validate.positive(learning_rate=learning_rate)
  sigma_b = expected / 20 if bit_noise is None else validate.positive(bit_noise=bit_noise)
  on_sum, on_count = _shared_out(noise_multiplier, sigma_b)

  def release(ctx: Context, message: Message, bound):
    sum_key, count_key = jax.random.split(ctx.key)
    aux = dict(message.aux)
    count = aux.pop('below')
    message = message._replace(aux=aux)
    if noise_multiplier:
      stddev = on_sum * ctx.bound.l2
      message = noising.added(ctx, message, noise.gaussian(sum_key, message.update, stddev))
      count = count + noise.gaussian(count_key, count, on_count)
    else:
      message = clipping.restored(ctx, message, message.update)
    below = count / expected + 0.5
    new = bound * jnp.exp(-learning_rate * (below - quantile))
    return message, new, {'bound': bound, 'below': below}

  # What both releases cost together; each is drawn with more noise.
  facts = (Noises(mechanisms.Gaussian(noise_multiplier)),) if noise_multiplier else ()
  return Layer(
    'adaptive_clip',
    client=Stage(_clip_and_tell, facts=(_TRACKED,)),
    server=Stage(release, lambda ctx: jnp.float32(initial_l2_clip_norm), facts),
  )


def _shared_out(noise_multiplier: float, sigma_b: float) -> tuple[float, float]:
  """Returns the noise (on the sum over its bound, on the count) that together cost the multiplier.

  Raises:
    ValueError: the count alone would cost more.
  """
  validate.non_negative(noise_multiplier=noise_multiplier)
  if not noise_multiplier:
    return 0.0, 0.0
  if noise_multiplier >= 2 * sigma_b:
    raise ValueError(
      f'noise_multiplier must be below 2 bit_noise = {2 * sigma_b:g}, or the count alone spends '
      f'more than the budget, got {noise_multiplier!r}.'
    )
  return (noise_multiplier**-2 - (2 * sigma_b) ** -2) ** -0.5, sigma_b


def _clip_and_tell(ctx: Context, message: Message, state):
  """The client side: clips to the tracked bound, and adds whether the norm was within it."""
  message, norm, metrics = clipping.clipped(clipping.l2, message, ctx.server_state)
  below = jnp.where(norm <= ctx.server_state, jnp.float32(0.5), jnp.float32(-0.5))
  below = jnp.where(message.weight > 0, below, jnp.float32(0))
  return message._replace(aux={**message.aux, 'below': below}), state, metrics
