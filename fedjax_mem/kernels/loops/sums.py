"""Compensated sums: float32 sums whose error does not grow with the order or size of the terms.

A plain float32 sum of n vectors of norm C may err by up to about n ** 2 C / 2 ** 24, and who
chooses one of the vectors can choose the error: a crafted cohort of 16,385 clients moved such a sum
by 5 C, where noise is scaled to C (Casacuberta, Shoemate, Vadhan, Wagaman 2022, arXiv 2207.10635).
Here a sum is a pair (high, low) of arrays, and what an addition rounds off is kept:

>>> big, small = jnp.float32(2.0**24), jnp.float32(1)
>>> float(big + small - big)
0.0
>>> kept = add(add(zeros(big), big), small)
>>> float(kept.high - big + kept.low)
1.0

The error. `two_sum` is exact: high + x = s + e, with |e| <= u |s| and u = 2 ** -24. An addition
rounds once, where it adds e to the old low. Both are at most u times a partial sum, so it errs by
at most 2 u ** 2 times the sum A of the terms' magnitudes (to first order). A sum of n terms takes
at most 3 n additions, since joining two pairs takes two. In the end low is dropped, which errs by
at most u A. This holds coordinate by coordinate, hence in any norm in which no term is larger than
C:

    |error| <= (u + 6 n u ** 2) n C.

The sums of two neighbouring data sets err independently (`core.bound.rounding`).

References: Knuth (1997), The art of computer programming, vol. 2, section 4.2.2, theorem B
(two-sum); Dekker (1971), A floating-point technique for extending the available precision.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import Tree, tree
from fedjax_mem.kernels.loops import across, parts

# Columns that are summed at a time: with two arrays of float32, 64 KiB.
_COLUMNS = 1 << 13


class Sum(NamedTuple):
  """A sum, high + low, of trees of arrays.

  Attributes:
    high: the sum as it is rounded, in the shapes and dtypes of a term.
    low: for arrays of floats what the rounding left; for integers, which are exact, zeros [].
  """

  high: Tree
  low: Tree


def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (s, e): s = a + b rounded, e its error, so that s + e = a + b exactly."""
  s = a + b
  back = s - a
  return s, (a - (s - back)) + (b - back)


def zeros(like: Tree) -> Sum:
  """Returns the sum of no terms; `like` is a term, or its shapes."""
  rest = lambda x: jnp.zeros(x.shape if _rounds(x) else (), x.dtype)
  return Sum(tree.zeros(like), jax.tree.map(rest, like))


def add(total: Sum, term: Tree) -> Sum:
  """Returns the sum with one more term."""

  def one(high: jax.Array, low: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    if not _rounds(x):
      return high + x, low
    s, e = two_sum(high, x)
    return two_sum(s, e + low)

  return _mapped(one, total, term)


def join(one: Sum, other: Sum) -> Sum:
  """Returns the sum of both."""
  whole = add(one, other.high)

  def rest(high: jax.Array, low: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    if not _rounds(high):
      return high, low
    s, e = two_sum(high, x)
    return two_sum(s, e + low)

  return _mapped(rest, whole, other.low)


def total(stack: Tree) -> Sum:
  """Returns the sum over the leading axis [k, ...] of every array, first row first."""
  leaves, structure = jax.tree.flatten(stack)
  pairs = [_rows_summed(x) for x in leaves]
  return Sum(*(jax.tree.unflatten(structure, [pair[i] for pair in pairs]) for i in (0, 1)))


def _rows_summed(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (high, low) of the sum of the rows of x [k, ...]."""
  shape = x.shape[1:]
  if not _rounds(x):
    return x.sum(0, dtype=x.dtype), jnp.zeros((), x.dtype)
  rows = x.reshape((x.shape[0], -1))

  def part(start: jax.Array, length: int) -> Sum:
    def step(i: jax.Array, held: Sum) -> Sum:
      return add(held, jax.lax.dynamic_slice(rows, (i, start), (1, length))[0])

    empty = zeros(jax.ShapeDtypeStruct((length,), x.dtype))
    summed: Sum = jax.lax.fori_loop(0, len(rows), step, empty)
    return summed

  # Some columns at a time: the pair stays in the cache while all rows are added to it.
  high, low = parts.stream(part, rows.shape[1], part=_COLUMNS)
  return high.reshape(shape), low.reshape(shape)


def over_devices(part: Sum, axis: str) -> Sum:
  """Returns the sum over the devices of a mesh axis, added in their order on every device."""
  leaves, structure = jax.tree.flatten(part.high)
  lows = jax.tree.leaves(part.low)
  places = [i for i, x in enumerate(leaves) if _rounds(x)]
  # One vector, so that devices exchange one message: several at a time could wait for each other.
  mine = jnp.stack([tree.ravel([x[i] for i in places]) for x in (leaves, lows)])

  def both(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.stack(join(Sum(a[0], a[1]), Sum(b[0], b[1])))

  whole = across.joined(mine, axis, both)
  high, low = (tree.unravel(x, [leaves[i] for i in places]) for x in whole)
  for x, i in enumerate(places):
    leaves[i], lows[i] = high[x], low[x]
  rest = [i for i in range(len(leaves)) if i not in places]
  summed = across.total([across.after(leaves[i], whole) for i in rest], axis)
  for i, x in zip(rest, summed, strict=True):
    leaves[i] = x
  return Sum(jax.tree.unflatten(structure, leaves), jax.tree.unflatten(structure, lows))


def _rounds(x: jax.Array | jax.ShapeDtypeStruct) -> bool:
  return bool(jnp.issubdtype(x.dtype, jnp.floating))


def _mapped(
  f: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]], held: Sum, term: Tree
) -> Sum:
  """Returns the sum with f(high, low, term) for every array."""
  highs, structure = jax.tree.flatten(held.high)
  lows, terms = jax.tree.leaves(held.low), jax.tree.leaves(term)
  pairs = [f(*x) for x in zip(highs, lows, terms, strict=True)]
  return Sum(*(jax.tree.unflatten(structure, [pair[i] for pair in pairs]) for i in (0, 1)))
