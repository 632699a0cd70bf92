"""Clipping at a tracked quantile of the updates' norms, with noise on the sum and on the count.

Each client sends one bit, whether its norm is within the bound, minus 1/2, so that it moves the sum
of bits by 1/2 at most. The noisy fraction of norms within the bound moves the bound. The noise on
the two sums is set such that both releases together cost as much as one Gaussian release of
multiplier z.

Formal guarantee: that of `central` with a Gaussian of multiplier `noise_multiplier` a round. The
bound of a round depends only on releases of earlier rounds.

Reference: Andrew, Thakkar, McMahan, Ramaswamy (2021), arXiv 1905.03871, Algorithm 1, Theorem 1.
"""

import jax
import jax.numpy as jnp

from fedjax_mem import mechanisms
from fedjax_mem.core import (
  Bound,
  Bounds,
  Context,
  Covered,
  Layer,
  Message,
  Metrics,
  Noises,
  Stage,
  Tree,
  validate,
)
from fedjax_mem.kernels.random import noise
from fedjax_mem.stages.privacy import _base as kit

# The bound is a number of the round's state: it is not known when the round is planned.
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
  """Returns the layer that clips at a tracked quantile of the norms and adds noise to the sum.

  Server state: C, the bound of the next round. Metrics of the round: `bound` (C) and `below` (the
  noisy fraction of norms within C), which epsilon covers, `clipped` and `norm`, which it does not.

  >>> layer = adaptive_clip(0.0, expected=2.0, initial_l2_clip_norm=5.0)  # without noise
  >>> fm.apply([[6.0, 8.0], [0.0, 1.0]], layer).metrics['adaptive_clip/below'].item()
  0.5

  Args:
    noise_multiplier: z, of both releases together; 0 adds no noise and claims no privacy.
    expected: clients expected in a cohort, public, > 0.
    initial_l2_clip_norm: C of the first round, > 0.
    quantile: gamma, the fraction of norms that should be within the bound, in [0, 1].
    learning_rate: eta, > 0, in C <- C exp(-eta (below - gamma)).
    bit_noise: sigma_b, standard deviation of the noise on the count; by default expected / 20. That
      on the sum is then (z ** -2 - (2 sigma_b) ** -2) ** -1/2 times C.

  Raises:
    ValueError: an argument is out of range, or noise_multiplier >= 2 bit_noise: the release of the
      count would cost more than the whole budget.
  """
  validate.positive(expected=expected)
  validate.positive(initial_l2_clip_norm=initial_l2_clip_norm)
  validate.fraction(quantile=quantile)
  validate.positive(learning_rate=learning_rate)
  sigma_b = expected / 20 if bit_noise is None else validate.positive(bit_noise=bit_noise)
  on_sum, on_count = _split_noise(noise_multiplier, sigma_b)

  def release(ctx: Context, message: Message, bound: Tree) -> tuple[Message, Tree, Metrics]:
    sum_key, count_key = jax.random.split(ctx.key)
    aux = dict(message.aux)
    count, message = aux.pop('below'), message._replace(aux=aux)
    if noise_multiplier:
      stddev = on_sum * ctx.bound.l2
      message = kit.added(ctx, message, noise.gaussian(sum_key, message.update, stddev))
      count = count + noise.gaussian(count_key, count, on_count)
    else:
      message = kit.restored(ctx, message, message.update)
    below = count / expected + 0.5  # each bit was sent minus 1/2
    new = bound * jnp.exp(-learning_rate * (below - quantile))
    noted = {'bound': bound, 'below': below}  # with noise both are releases
    return message, new, {k: Covered(x) for k, x in noted.items()} if noise_multiplier else noted

  # The cost of both releases together: each of them has more noise than this multiplier.
  facts = (Noises(mechanisms.Gaussian(noise_multiplier)),) if noise_multiplier else ()
  return Layer(
    'adaptive_clip',
    client=Stage(_clip_and_count, facts=(_TRACKED,)),
    server=Stage(release, lambda ctx: jnp.float32(initial_l2_clip_norm), facts),
  )


def _split_noise(noise_multiplier: float, sigma_b: float) -> tuple[float, float]:
  """Returns (noise on the sum over its bound, noise on the count), as standard deviations.

  Together the two releases cost as much as one of multiplier `noise_multiplier`.

  Raises:
    ValueError: the release of the count would cost more.
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


def _clip_and_count(ctx: Context, message: Message, state: Tree) -> tuple[Message, Tree, Metrics]:
  """Returns the message clipped to the tracked bound, with the bit whether it was within it."""
  message, norm, metrics = kit.clipped(kit.clip_l2, message, ctx.server_state)
  below = jnp.where(norm <= ctx.server_state, jnp.float32(0.5), jnp.float32(-0.5))
  below = jnp.where(message.weight > 0, below, jnp.float32(0))
  return message._replace(aux={**message.aux, 'below': below}), state, metrics
