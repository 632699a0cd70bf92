"""Noise on a pytree from one key: Gaussian, Laplace, and on integers discrete Gaussian and Skellam.

All values of a tree come from one flat draw, so no two arrays can share a stream. JAX's generators
are not cryptographic and floating point is not the real line (Mironov 2012): this noise simulates a
mechanism, it does not protect anybody's data. What float32 does to the tails is stated at each
function.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mem.core import validate
from fedjax_mem.kernels.random.laws import Thresholds, reached, thresholds

Tree = Any

# The largest parameter of noise on integers: its table holds ten times as many entries.
LARGEST_SIGMA = 100_000.0


def _flat(draw: Callable[[int], jax.Array], like: Tree) -> Tree:
  """Returns one draw of as many values as `like` has, cut into its shapes."""
  leaves, structure = jax.tree.flatten(like)
  ends = np.cumsum([x.size for x in leaves])
  if not leaves or ends[-1] == 0:
    return jax.tree.map(lambda x: draw(0).reshape(x.shape), like)
  flat = draw(int(ends[-1]))
  parts = [flat[e - x.size : e].reshape(x.shape) for e, x in zip(ends, leaves, strict=True)]
  return jax.tree.unflatten(structure, parts)


def gaussian(key: jax.Array, like: Tree, stddev: jax.typing.ArrayLike) -> Tree:
  """Returns float32 Gaussian noise of the shapes of `like`.

  Drawn by the inverse of the error function of 23 random bits: values beyond 5.4 standard
  deviations (probability 7e-8) never occur.

  Args:
    key: of this use alone.
    like: arrays or shapes.
    stddev: standard deviation, >= 0: a number or a float32 scalar.
  """
  stddev = jnp.asarray(stddev, jnp.float32)
  return _flat(lambda size: stddev * jax.random.normal(key, (size,), jnp.float32), like)


def laplace(key: jax.Array, like: Tree, scale: jax.typing.ArrayLike) -> Tree:
  """Returns float32 Laplace noise of the shapes of `like`; its variance is 2 scale ** 2.

  Drawn by the inverse of the distribution function of 23 random bits: values beyond about 16 scales
  (probability 1e-7) never occur.

  Args:
    key: of this use alone.
    like: arrays or shapes.
    scale: >= 0: a number or a float32 scalar.
  """
  scale = jnp.asarray(scale, jnp.float32)
  return _flat(lambda size: scale * jax.random.laplace(key, (size,), jnp.float32), like)


@functools.lru_cache(maxsize=16)
def discrete_table(sigma: float) -> Thresholds:
  """Returns the table of |X| for the discrete Gaussian, P(X = k) ~ exp(-k² / 2 sigma²).

  Args:
    sigma: its parameter in steps of the grid, in (0, 100000]; close to its standard deviation.

  Raises:
    ValueError: sigma is out of range.
  """
  _check_sigma(sigma)
  # Beyond 10 sigma lies less than 2**-64.
  k = np.arange(math.ceil(10 * sigma) + 10, dtype=np.float64)
  return _table(np.exp(-((k / sigma) ** 2) / 2))


@functools.lru_cache(maxsize=16)
def skellam_table(sigma: float) -> Thresholds:
  """Returns the table of |X| for the Skellam law.

  X is the difference of two Poisson variables of mean sigma ** 2 / 2 each: P(X = k) =
  exp(-v) I_k(v) with v = sigma ** 2. Sums of such variables are of the same kind.

  Args:
    sigma: its standard deviation in steps of the grid, in (0, 100000].

  Raises:
    ValueError: sigma is out of range.
  """
  _check_sigma(sigma)
  variance = float(sigma) ** 2
  # Beyond this lies less than 2**-64, also where the tail is that of a Poisson variable.
  size = math.ceil(10 * sigma) + 40
  # I_k / I_(k-1) by its continued fraction from far out, where an approximation does.
  start = size + 50
  ratio = variance / (start + math.hypot(start, variance))
  ratios = np.empty(start)
  for k in range(start - 1, 0, -1):
    ratio = 1 / (2 * k / variance + ratio)
    ratios[k] = ratio
  return _table(np.exp(np.concatenate([[0.0], np.cumsum(np.log(ratios[1:size]))])))


def _check_sigma(sigma: float) -> None:
  if validate.positive(sigma=sigma) > LARGEST_SIGMA:
    raise ValueError(f'sigma must be at most {LARGEST_SIGMA:g} steps of the grid, got {sigma!r}.')


def _table(mass: np.ndarray) -> Thresholds:
  """Returns the table of |X| for a law whose P(X = k) = P(X = -k) are in proportion to mass [K]."""
  mass = mass * np.where(np.arange(mass.size) > 0, 2.0, 1.0)
  above = np.append(np.cumsum(mass[:0:-1])[::-1], 0.0) / mass[::-1].sum()
  return thresholds(above)


def discrete_gaussian(key: jax.Array, like: Tree, table: Thresholds) -> Tree:
  """Returns int32 discrete Gaussian noise of the shapes of `like`, as `tabled` draws it.

  It is the law of the exact sampler of Canonne, Kamath, Steinke (2020), arXiv 2004.00010,
  Algorithm 3, up to what is said there.

  Args:
    key: of this use alone.
    like: arrays or shapes.
    table: from `discrete_table`.
  """
  return tabled(key, like, table)


def tabled(key: jax.Array, like: Tree, table: Thresholds) -> Tree:
  """Returns int32 noise of the shapes of `like`, of the law in a table.

  Drawn by the inverse of the distribution function from 64 random bits and a sign: a probability is
  off by at most 2**-64, or a rounding of float64 (1e-16 of it, from the tail; for Skellam some
  roundings). But the bits are JAX's, and how long a draw takes is not hidden.

  Args:
    key: of this use alone.
    like: arrays or shapes.
    table: from `discrete_table` or `skellam_table`.
  """
  high, low = jnp.asarray(table.high), jnp.asarray(table.low)
  count = table.high.size

  def draw(size: int) -> jax.Array:
    bits = jax.random.bits(key, (3, size), jnp.uint32)

    def halve(_, carry: tuple) -> tuple:
      first, last = carry
      middle = (first + last) // 2
      top, bottom = (x.at[middle].get(mode='clip') for x in (high, low))
      below = reached(top, bottom, bits[0], bits[1])
      below &= first < last
      return jnp.where(below, middle + 1, first), jnp.where(below, last, middle)

    ends = jnp.zeros(size, jnp.int32), jnp.full(size, count, jnp.int32)
    magnitude = jax.lax.fori_loop(0, count.bit_length(), halve, ends)[0]
    return jnp.where(bits[2] >> 31 == 0, magnitude, -magnitude)

  return _flat(draw, like)
