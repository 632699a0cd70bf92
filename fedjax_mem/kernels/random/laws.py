"""Laws of counts: thresholds of 64 bits for draws by inversion, and capacities of cohorts.

A draw by inversion asks how many k have P(X <= k) <= u for a uniform u. Float32 has no tails that
are fine enough, so u has 64 bits, and the thresholds floor(2**64 P(X <= k)) stand in a table of two
uint32 halves, made once on the host in exact integers.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


class Thresholds(NamedTuple):
  """Distribution function of a count X >= 0, in steps of 2**-64.

  Attributes:
    high: [K] uint32, upper halves of floor(2**64 P(X <= k)) for k = 0 … K - 1.
    low: [K] uint32, lower halves.
  """

  high: np.ndarray[Any, Any]
  low: np.ndarray[Any, Any]


def thresholds(above: np.ndarray[Any, Any]) -> Thresholds:
  """Returns the table of a law, from P(X > k) for k = 0 … K - 1 in float64, [K].

  The upper tail is given, and not P(X <= k), since float64 is exact where it is small. A threshold
  at 2**64 (certainty, up to rounding) is held as 2**64 - 1.
  """
  exact = [max(0, min(2**64 - 1, 2**64 - int(p * 2.0**64))) for p in above]
  return Thresholds(
    np.array([t >> 32 for t in exact], np.uint32),
    np.array([t & 0xFFFFFFFF for t in exact], np.uint32),
  )


def reached(high: ArrayLike, low: ArrayLike, upper: ArrayLike, lower: ArrayLike) -> jax.Array:
  """Returns whether thresholds (high, low) are at most the draws of 64 bits (upper, lower)."""
  above = jnp.less(high, upper)
  return above | (jnp.equal(high, upper) & jnp.less_equal(low, lower))


def chosen(bits: jax.Array, probability: float) -> jax.Array:
  """Returns booleans that are true with probability floor(p 2**32) / 2**32, from uint32 bits.

  Rounded down, so that nobody is chosen more often than is accounted for. (A float32 draw would be
  no finer than 2**-23.)
  """
  steps = math.floor(probability * 2.0**32)
  if not steps:
    return jnp.zeros(bits.shape, bool)
  return jnp.less_equal(bits, jnp.uint32(steps - 1))


def binomial_capacity(number: int, probability: float, overflow: float = 1e-9) -> int:
  """Returns the least capacity that a binomial count exceeds with probability `overflow` at most.

  Args:
    number: n, clients or examples.
    probability: p of each; of unequal ones their mean: among all probabilities with the same sum
      the tail is heaviest where they are equal (Hoeffding 1956, theorem 5).
    overflow: probability that a cohort or batch is cut to the capacity, in (0, 1).

  Returns:
    In 1 … n.
  """
  from scipy import stats  # imported where it is used: it takes a while

  return max(1, min(number, int(stats.binom(number, probability).isf(overflow))))
