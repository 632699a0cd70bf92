"""SignGuard: leaves out updates with an unusual norm or with unusual shares of signs.

Reference: Xu et al. (2022), SignGuard: Byzantine-robust federated learning through collaborative
malicious gradient filtering, arXiv 2109.05872, Algorithm 2.
"""

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Metrics, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.kernels.order import columns
from fedjax_mem.stages.aggregate import _base as kit

_STEPS = 30  # of mean shift: a fixed number instead of a test of convergence


def signguard(lower: float = 0.1, upper: float = 3.0, fraction: float = 0.1) -> Layer:
  """Returns the layer that averages the clients which pass both filters, clipped to a median norm.

  The first filter keeps norms between `lower` and `upper` times the median norm. The second filter
  clusters the clients by mean shift and keeps the largest cluster; the features are the shares of
  positive, zero and negative values among random coordinates. The bandwidth of mean shift is the
  median distance from a client to all clients, averaged over the clients. If no client passes both
  filters, the clients that pass the first are averaged.

  >>> updates = [[1.0, 2.0], [2.0, 1.0], [1.5, 1.5], [-90.0, -90.0]]
  >>> fm.apply(updates, signguard(fraction=1.0)).update.round(1).tolist()
  [1.5, 1.5]

  Args:
    lower: smallest norm divided by the median norm, in [0, upper].
    upper: largest norm divided by the median norm, > 0.
    fraction: share of the coordinates whose signs are counted, in (0, 1].

  Raises:
    ValueError: an argument is out of range.
  """
  validate.non_negative(lower=lower)
  validate.positive(upper=upper)
  validate.probability(fraction=fraction)
  if lower > upper:
    raise ValueError(f'lower must be at most upper = {upper!r}, got {lower!r}.')

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del weights
    scaled, at = gram.norms(x)
    # In units of the row in the middle: one of 1e36 among others of 1e-36 may be infinite.
    norms = jnp.ldexp(scaled, at - gram.typical(x, on)[1])
    middle = columns.median(norms[:, None], on)[0]
    room = 1 + columns.ROUNDING
    usual = on & (norms * room >= lower * middle) & (norms <= upper * middle * room)
    size = x.shape[1]
    count = max(1, round(fraction * size))
    drawn = x
    if count < size:
      drawn = x[:, jax.random.randint(ctx.round_key, (count,), 0, size, jnp.int32)]
    good = usual & cluster(sign_shares(drawn), on)
    good = jnp.where(good.any(), good, usual)
    factor = jnp.where(norms > middle, middle / norms, jnp.float32(1))
    number = jnp.maximum(good.sum(), 1).astype(jnp.float32)
    value = gram.combine(jnp.where(good, factor, 0) / number, x)
    return value, {'left': good.sum(dtype=jnp.int32)}

  return kit.rule('signguard', compute)


def sign_shares(x: jax.Array) -> jax.Array:
  """Returns the shares of positive, zero and negative values in every row of x [C, B], [C, 3]."""
  shares = [(s.astype(jnp.float32)).mean(1) for s in (x > 0, x == 0, x < 0)]
  return jnp.stack(shares, axis=1)


def cluster(features: jax.Array, on: jax.Array) -> jax.Array:
  """Returns which rows [C] are in the largest cluster of mean shift with a flat kernel.

  Every row moves `_STEPS` times to the mean of the rows within the bandwidth. Rows that end within
  half a bandwidth of each other form a cluster. All clusters of the largest size are taken.

  Args:
    features: [C, F] float32.
    on: [C] booleans, the rows that count.
  """

  def apart(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(a[:, None] - b[None]).sum(-1))

  pairs = jnp.where(on[:, None] & on[None], apart(features, features), 0)
  count = jnp.maximum(on.sum(), 1).astype(jnp.float32)
  middles = columns.median(pairs, on)
  # Not 0: rows whose shares of signs differ only by rounding belong to one cluster. And a little
  # more than it is: shares are multiples of 1 / B, and their distances often equal the bandwidth.
  bandwidth = jnp.maximum(jnp.where(on, middles, 0).sum() / count, 1e-6) * (1 + columns.ROUNDING)

  def shift(_: jax.Array, points: jax.Array) -> jax.Array:
    near = ((apart(points, features) <= bandwidth) & on[None]).astype(jnp.float32)
    total = jnp.matmul(near, features, precision=jax.lax.Precision.HIGHEST)
    return total / jnp.maximum(near.sum(1), 1)[:, None]

  points = jax.lax.fori_loop(0, _STEPS, shift, features)
  together = (apart(points, points) <= bandwidth / 2) & on[:, None] & on[None]
  sizes = together.sum(1)
  return on & (sizes == sizes.max())
