"""Noise on a pytree from one key: Gaussian, Laplace, and on integers discrete Gaussian and Skellam.

All values of a tree come from one flat draw, so no two arrays can share a stream. JAX's generators
are not cryptographic and floating point is not the real line (Mironov 2012): this noise simulates a
mechanism, it does not protect anybody's data. Each function states what float32 does to the tails.

Noise on integers is drawn by inverting its distribution function, P(|X| <= k), a table of 64-bit
fractions computed on the host. Exact samplers reject, so that their number of steps is random;
a search in a table takes the same steps for every value, and so can be compiled.

Worked example: the discrete Gaussian with sigma 1. The first entries of its table are
P(|X| <= 0) = 0.399, P(|X| <= 1) = 0.883, P(|X| <= 2) = 0.991:

>>> table = discrete_table(1.0)
>>> [round(float(t) / 2**32, 3) for t in table.high[:3]]
[0.399, 0.883, 0.991]

A uniform number u = 0.5 lies between the first two, so |X| is 1: the number of entries <= u. One
more random bit is the sign.
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
_Interval = tuple[jax.Array, jax.Array]

# The largest parameter of noise on integers, in steps of the grid: its table holds ten times as
# many entries, of 8 bytes.
LARGEST_SIGMA = 100_000.0


def _flat(draw: Callable[[int], jax.Array], like: Tree) -> Tree:
  """Returns one draw of as many values as `like` has, cut into its shapes.

  Args:
    draw: number of values -> vector of so many.
    like: arrays or shapes.
  """
  leaves, structure = jax.tree.flatten(like)
  ends = np.cumsum([x.size for x in leaves])
  # Nothing to draw, but the result keeps the dtype of a draw.
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
    key: used for nothing else.
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
    key: used for nothing else.
    like: arrays or shapes.
    scale: >= 0: a number or a float32 scalar.
  """
  scale = jnp.asarray(scale, jnp.float32)
  return _flat(lambda size: scale * jax.random.laplace(key, (size,), jnp.float32), like)


@functools.lru_cache(maxsize=16)
def discrete_table(sigma: float) -> Thresholds:
  """Returns the table of |X| for the discrete Gaussian, P(X = k) ~ exp(-k² / 2 sigma²).

  Reference: Canonne, Kamath, Steinke (2020), arXiv 2004.00010, Definition 1.

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

  Reference: Skellam (1946); Agarwal, Kairouz, Liu (2021), arXiv 2110.04995, as a private mechanism.

  Args:
    sigma: its standard deviation in steps of the grid, in (0, 100000].

  Raises:
    ValueError: sigma is out of range.
  """
  _check_sigma(sigma)
  variance = float(sigma) ** 2
  # Beyond this lies less than 2**-64, also where the tail is that of a Poisson variable.
  size = math.ceil(10 * sigma) + 40
  # Ratios, not the functions, which overflow: r_k = I_k / I_(k-1) = 1 / (2 k / v + r_(k+1)). From
  # the far end down, where r_k is about v / (k + sqrt(k² + v²)): each step divides the error of
  # that start further, so that 50 steps beyond the table are enough. Upwards, errors would grow.
  # For v = 4: r_1 = I_1(4) / I_0(4) = 0.8635.
  start = size + 50
  ratio = variance / (start + math.hypot(start, variance))
  ratios = np.empty(start)
  for k in range(start - 1, 0, -1):
    ratio = 1 / (2 * k / variance + ratio)
    ratios[k] = ratio
  # Masses relative to P(X = 0): products of ratios, as sums of logarithms. `_table` normalises.
  return _table(np.exp(np.concatenate([[0.0], np.cumsum(np.log(ratios[1:size]))])))


def _check_sigma(sigma: float) -> None:
  """Raises `ValueError` unless sigma is in (0, LARGEST_SIGMA]."""
  if validate.positive(sigma=sigma) > LARGEST_SIGMA:
    raise ValueError(f'sigma must be at most {LARGEST_SIGMA:g} steps of the grid, got {sigma!r}.')


def _table(mass: np.ndarray) -> Thresholds:
  """Returns the table of a distribution with P(X = k) = P(X = -k) proportional to mass [K].

  >>> table = _table(np.array([2.0, 1.0]))
  >>> (table.high / 2**32).tolist()
  [0.5, 0.9999999997671694]
  """
  # Of 0 there is one, of every other magnitude two: k and -k. In the example: 2, 2.
  mass = mass * np.where(np.arange(mass.size) > 0, 2.0, 1.0)
  # P(|X| > k), summed from the far end, smallest first: 1 - P keeps tails that P(|X| <= k) near 1
  # would round away in float64. The entries are exact integers only from here on.
  above = np.append(np.cumsum(mass[:0:-1])[::-1], 0.0) / mass[::-1].sum()
  return thresholds(above)


def tabled(key: jax.Array, like: Tree, table: Thresholds) -> Tree:
  """Returns int32 noise of the shapes of `like`, of the distribution in a table.

  Drawn by the inverse of the distribution function from 64 random bits and a sign: a probability is
  off by at most 2**-64, or a rounding of float64 (1e-16 of it, from the tail; for Skellam some
  roundings). But the bits are JAX's, and how long a draw takes is not hidden.

  Args:
    key: used for nothing else.
    like: arrays or shapes.
    table: from `discrete_table` or `skellam_table`.
  """
  high, low = jnp.asarray(table.high), jnp.asarray(table.low)
  count = table.high.size

  def draw(size: int) -> jax.Array:
    # Rows 0 and 1 are the uniform number of 64 bits, row 2 the sign.
    bits = jax.random.bits(key, (3, size), jnp.uint32)

    def bisect(_: jax.Array | int, carry: _Interval) -> _Interval:
      # Binary search for the number of entries <= the uniform number, in [first, last].
      first, last = carry
      middle = (first + last) // 2
      top, bottom = (x.at[middle].get(mode='clip') for x in (high, low))
      # Entry <= number, for numbers of two halves.
      below = reached(top, bottom, bits[0], bits[1])
      # Every search takes as many steps as the longest: one that has ended stays where it is.
      below &= first < last
      return jnp.where(below, middle + 1, first), jnp.where(below, last, middle)

    ends = jnp.zeros(size, jnp.int32), jnp.full(size, count, jnp.int32)
    magnitude = jax.lax.fori_loop(0, count.bit_length(), bisect, ends)[0]
    # Zero has both signs, which are one value: its mass was not doubled.
    return jnp.where(bits[2] >> 31 == 0, magnitude, -magnitude)

  return _flat(draw, like)
