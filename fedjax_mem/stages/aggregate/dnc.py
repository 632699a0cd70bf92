"""Divide and conquer: clients that stand out along the main direction of the updates are removed.

Reference: Shejwalkar and Houmansadr (2021), Manipulating the Byzantine, NDSS, Algorithm 2.
"""

import math

import jax
import jax.numpy as jnp

from fedjax_mem.core import Layer, Rule, validate
from fedjax_mem.kernels.norms import gram
from fedjax_mem.stages.aggregate import _base as rule

_SQUARINGS = 12  # so that directions that differ by a thousandth in strength are told apart


def dnc(byzantine: int, iterations: int = 5, sample: int = 10_000, share: float = 1.0) -> Layer:
  """Returns the layer that averages the clients which were removed in no iteration.

  An iteration draws coordinates, takes the main direction of the updates about their mean, and
  removes the share * f clients with the largest squared projections on it. If the iterations remove
  everybody, the round is skipped.

  It is made for hostile clients that lie alike. Where they lie in unlike directions, the main one
  is that of the largest lies, and the others may stay, however large they are.

  Args:
    byzantine: f, hostile clients in a cohort, >= 0; it needs more than 2f clients, and more than
      share * f.
    iterations: how often, >= 1.
    sample: coordinates that are drawn, with replacement, >= 1.
    share: c, clients removed in an iteration over f, > 0, rounded up.

  Raises:
    ValueError: an argument is out of range.
  """
  f = rule.check_byzantine(byzantine)
  validate.integer(iterations=iterations)
  validate.integer(sample=sample)
  validate.positive(share=share)
  removed = math.ceil(share * f)
  least = max(2 * f, removed) + 1

  def compute(ctx, x, on, weights):
    del weights
    count = on.sum(dtype=jnp.int32)
    size = x.shape[1]

    def once(i: jax.Array, good: jax.Array) -> jax.Array:
      drawn = x
      if sample < size:
        key = jax.random.fold_in(ctx.round_key, i)
        drawn = x[:, jax.random.randint(key, (sample,), 0, size)]
      outlying = projections(drawn, on)
      # The most outlying are the smallest of their negatives; ties share, so both are in doubt.
      taken = gram.shares_of_smallest(-outlying, on, jnp.minimum(removed, count))
      return good & (taken < 1)

    good = jax.lax.fori_loop(0, iterations, once, on)
    rest = jnp.maximum(good.sum(), 1).astype(jnp.float32)
    value = gram.combine(good.astype(jnp.float32) / rest, x)
    return value, {'left': good.sum(dtype=jnp.int32)}

  return rule.layer('dnc', compute, Rule(least, f'C >= {least} with f = {f}'))


def projections(x: jax.Array, on: jax.Array) -> jax.Array:
  """Returns the squared projections [C] of the rows, less their mean, on their main direction.

  In units that do not matter to a comparison. The direction comes from powers of a matrix [C, C],
  which matrix products square again and again; an eigendecomposition takes many times as long.

  Args:
    x: [C, B] floats.
    on: [C] booleans, the rows that count.
  """
  _, scale = gram.typical(x, on)
  # A row beyond all measure is as outlying as one can be told to be.
  x = jnp.clip(x * scale, -1e12, 1e12)
  share = on.astype(jnp.float32) / jnp.maximum(on.sum(), 1).astype(jnp.float32)
  x = jnp.where(on[:, None], x - gram.combine(share, x)[None], 0)
  product = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
  unit = lambda a: a / jnp.maximum(jnp.abs(a).max(), 1e-30)

  def squared(_, power: jax.Array) -> jax.Array:
    power = product(power, power)
    return unit((power + power.T) / 2)

  power = jax.lax.fori_loop(0, _SQUARINGS, squared, unit(product(x, x.T)))
  return jnp.where(on, jnp.square(power[:, jnp.argmax(jnp.diagonal(power))]), 0)
