"""Divide and conquer: removes clients that are outliers along the principal direction of updates.

Reference: Shejwalkar and Houmansadr (2021), Manipulating the Byzantine, NDSS, Algorithm 2.
"""

import math

import jax
import jax.numpy as jnp

from fedjax_mem.core import Context, Layer, Metrics, Rule, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.kernels.order import columns
from fedjax_mem.stages.aggregate import _base as kit

_SQUARINGS = 10  # the power 2^10 separates eigenvalues whose ratio is 1.005: 1.005^1024 = 165
_ROUNDING = 4e-3  # of squared projections: the power multiplies that of rows and sums, too


def dnc(byzantine: int, iterations: int = 5, sample: int = 10_000, share: float = 1.0) -> Layer:
  """Returns the layer that averages the clients which no iteration removed.

  An iteration draws coordinates and takes the principal direction of the updates about their mean.
  It removes the share * f clients with the largest squared projections on that direction. Clients
  that are tied for the last of these places share them: each keeps the same part of its weight in
  the average, the least that an iteration leaves. Squared projections within 0.4% are tied:
  rounding tells equal ones apart by half of that (50 clients, 10,000 coordinates). If the
  iterations remove all clients, the round is skipped. Where several directions are principal,
  projections are on all of them.

  The rule assumes that byzantine clients send similar updates. If their updates point in different
  directions, the principal direction is that of the largest ones, and the others may stay, however
  large they are.

  >>> fm.apply([[1.0], [2.0], [3.0], [60.0]], dnc(byzantine=1)).update.round(3).tolist()
  [2.0]

  Args:
    byzantine: f, byzantine clients in a cohort, >= 0; it needs more than 2f clients, and more than
      share * f.
    iterations: number of iterations, >= 1.
    sample: coordinates that are drawn, with replacement, >= 1.
    share: c, clients removed in an iteration divided by f, > 0; c f is rounded up.

  Raises:
    ValueError: an argument is out of range.
  """
  f = kit.check_byzantine(byzantine)
  validate.integer(iterations=iterations)
  validate.integer(sample=sample)
  validate.positive(share=share)
  removed = math.ceil(share * f)
  least = max(2 * f, removed) + 1

  def compute(
    ctx: Context, x: jax.Array, on: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    del weights
    count = on.sum(dtype=jnp.int32)
    size = x.shape[1]

    def once(i: jax.Array, good: jax.Array) -> jax.Array:
      drawn = x
      if sample < size:
        key = jax.random.fold_in(ctx.round_key, i)
        drawn = x[:, jax.random.randint(key, (sample,), 0, size, jnp.int32)]
      outlying = -projections(drawn, on)[:, None]
      taken = columns.smallest(outlying, on, jnp.minimum(removed, count), _ROUNDING)[:, 0]
      return jnp.minimum(good, 1 - taken)

    good = jax.lax.fori_loop(0, iterations, once, on.astype(jnp.float32))
    total = good.sum()
    value = gram.combine(good / jnp.where(total > 0, total, 1), x)
    return value, {'left': (good > 0).sum(dtype=jnp.int32)}

  return kit.rule('dnc', compute, Rule(least, f'C >= {least} with f = {f}'))


def projections(x: jax.Array, on: jax.Array) -> jax.Array:
  """Returns the squared projections [C] of the centered rows on their principal direction.

  Up to a common factor, which does not change a comparison. They come from a power of the Gram
  matrix [C, C], by repeated squaring; an eigendecomposition takes many times as long.

  Args:
    x: [C, B] floats.
    on: [C] booleans, the rows that count.
  """
  middle, unit = gram.typical(x, on)
  # Keeps products finite: beyond 1e12 times the typical row, a row cannot stand out any more.
  x = jnp.clip(x * jnp.ldexp(jnp.float32(1), -unit), -1e12, 1e12)
  # The typical row first, which rounds less, then the mean.
  x = jnp.where(on[:, None], x - x[middle][None], 0)
  share = on.astype(jnp.float32) / jnp.maximum(on.sum(), 1).astype(jnp.float32)
  x = jnp.where(on[:, None], x - gram.combine(share, x)[None], 0)

  def product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

  def whole(a: jax.Array) -> jax.Array:
    largest = jnp.abs(a).max()
    return a / jnp.where(largest > 0, largest, 1)

  def squared(_: jax.Array, power: jax.Array) -> jax.Array:
    power = product(power, power)
    # Rounding breaks the symmetry: this restores it.
    return whole((power + power.T) / 2)

  power = jax.lax.fori_loop(0, _SQUARINGS, squared, whole(product(x, x.T)))
  # What is left is the projection on the eigenvectors of the largest eigenvalue, up to a factor,
  # and on its diagonal are sums of their squares. As a rule it is one eigenvector.
  return jnp.where(on, jnp.maximum(jnp.diagonal(power), 0), 0)
