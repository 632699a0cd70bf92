"""Clipping of many gradients at once, some of which are outer products that are never formed.

The gradient of a dense kernel for one example is input ⊗ (gradient of the output): F + O numbers
instead of F * O, whose norm is the product of the two norms (Goodfellow 2015, arXiv 1510.01799).
Clipping scales one of the two, and a sum of such gradients is one matrix product (Lee & Kifer 2021,
arXiv 2009.03106; Bu et al. 2022, arXiv 2210.00038).

>>> pair = Outer(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 4.0]]))
>>> clipped, norm, _ = clip_each([pair], 6.0)
>>> norm.tolist(), total(clipped)[0].tolist()
([12.0], [[0.0, 6.0], [0.0, 0.0]])

Only outer products of vectors are kept apart. A gradient that is a sum of them over positions (a
sequence, a convolution) could have its norm from Gram matrices (Li et al. 2022, arXiv 2110.05679),
but where the terms cancel, rounding can make that norm too small without limit, and the clip would
no longer bound what is added. Such gradients are formed: the norm is then of what is added itself.

Rounding. With u = 2 ** -24, the squares of a row are summed to a relative error of at most 7 u: 1
for the square, 4 for a sum of 16 of them, two by two, 1 for the compensated sum of these and 1 for
its end. A product of two such sums errs by 15 u, the sum over arrays adds 2 u. So a norm errs by at
most 9.5 u with its root, and a clipped gradient exceeds its bound by at most 13 u of it: less than
`clip.MARGIN`, 16 u. Values are scaled by powers of two first, which rounds nothing.

The sum of n gradients by a matrix product is off by at most n u / (1 - n u) of the sum of their
norms, in whatever order it adds (Higham 2002, eq. 3.5): `slack`. Sums of such sums are compensated.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_mem.core import tree
from fedjax_mem.kernels.loops import sums

# Values that are added two by two, in vectors, before the compensated sum.
_FOLDED = 16
# The exponent of a row of zeros: whatever it is added to, 2 to that power is 0.
_NOTHING = -1000


class Outer(NamedTuple):
  """N matrices left ⊗ right.

  Attributes:
    left: [N, F].
    right: [N, O].
  """

  left: jax.Array
  right: jax.Array


Each = jax.Array | Outer


def clip_each(
  grads: list[Each], bound: jax.typing.ArrayLike
) -> tuple[list[Each], jax.Array, jax.Array]:
  """Returns (gradients clipped to the norm `bound`, norms [N] before, which are finite [N]).

  Each of the N gradients has one norm over all arrays; one inside the ball stays as it is. The edge
  cases are those of `clip.clip_by_global_norm`. A gradient that is not finite, or an outer product
  with an entry beyond float32, is marked as such; its row is to be dropped.

  Args:
    grads: arrays [N, ...] of floats, and outer products; at least one.
    bound: in 1e-30 ... 1e30; near the ends of float32 a power of two would leave it.
  """
  bound = jnp.asarray(bound, jnp.float32)
  largest = jnp.stack([_largest(x) for x in grads]).max(0)
  # NaN where any value is; an infinite value times 0, too, which is what the product would hold.
  finite = jnp.isfinite(largest)
  exponent = jnp.where(finite, _exponent(largest), 0)
  scale = _power(-exponent)
  squares = [_squares(x, exponent) for x in grads]
  scaled = jnp.sqrt(_sum(jnp.stack(squares, 1)))
  finite &= ~jnp.isnan(scaled)
  norms = scaled / scale
  inside: jax.Array = norms <= bound
  factor = bound / scaled
  clipped: list[Each] = []
  for x in grads:
    if isinstance(x, Outer):
      (left, at), (right, to) = _normal(x.left), _normal(x.right)
      times = jnp.where(inside, _power(at + to), _power(at + to - exponent) * factor)
      clipped.append(Outer(left, right * times[:, None]))
    else:
      x = x.astype(jnp.float32)
      on, by, times = (_lift(v, x) for v in (inside, scale, factor))
      clipped.append(jnp.where(on, x, (x * by) * times))
  return clipped, norms, finite


def keep(on: jax.Array, grads: list[Each]) -> list[Each]:
  """Returns the gradients where `on` [N], else exact zeros, even where they are NaN."""
  kept: list[Each] = tree.keep(on, grads)
  return kept


def total(grads: list[Each]) -> list[jax.Array]:
  """Returns the sums over the N gradients: arrays [...], and [F, O] for outer products.

  What is rounded off the sum of arrays is dropped; see `add` for long sums.
  """
  summed: list[jax.Array] = add(sums.zeros(shapes(grads)), grads).high
  return summed


def add(held: sums.Sum, grads: list[Each]) -> sums.Sum:
  """Returns the compensated sum with N more gradients, which are added up by a matrix product.

  Args:
    held: sums of lists of arrays in the shapes of one gradient.
    grads: from `clip_each`.
  """
  highs, lows = [], []
  for high, low, x in zip(held.high, held.low, grads, strict=True):
    one = sums.add(sums.Sum(high, low), _added_up(x))
    highs.append(one.high)
    lows.append(one.low)
  return sums.Sum(highs, lows)


def _added_up(x: Each) -> jax.Array:
  """Returns the sum of the N gradients, one matrix product."""
  if not isinstance(x, Outer):
    return tree.total(x)
  # In full float32 on every platform: `slack` counts its rounding units.
  return jnp.einsum('nf,no->fo', x.left, x.right, precision='highest')


def shapes(grads: list[Each]) -> list[jax.ShapeDtypeStruct]:
  """Returns the shapes of one gradient, in float32."""
  sizes = [
    (x.left.shape[1], x.right.shape[1]) if isinstance(x, Outer) else x.shape[1:] for x in grads
  ]
  return [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]


def slack(terms: int, held: int) -> float:
  """Returns how far the products may put two neighbours' sums apart, in norms of a gradient.

  Beyond `core.rounding`, which covers the compensated sum of products.

  Args:
    terms: the most gradients of a sum.
    held: the most gradients of one product.
  """
  u = 2.0**-24
  return 2 * terms * held * u / (1 - held * u)


def _lift(v: jax.Array, x: jax.Array) -> jax.Array:
  """Returns v [N] with axes added, so that it broadcasts against x [N, ...]."""
  return v.reshape((-1,) + (1,) * (x.ndim - 1))


def _largest(x: Each) -> jax.Array:
  """Returns the largest magnitude of each of the N gradients, NaN where one is."""
  if isinstance(x, Outer):
    # The largest entry of the product, and rounded as it would be.
    return _largest(x.left) * _largest(x.right)
  return jnp.max(jnp.abs(x.astype(jnp.float32)).reshape(len(x), -1), 1, initial=0)


def _exponent(largest: jax.Array) -> jax.Array:
  """Returns e with 2 ** (e - 1) <= largest < 2 ** e, in -126 … 126; 0 for zero."""
  e = jnp.clip(jnp.frexp(largest)[1], -126, 126)
  return jnp.where((largest > 0) & jnp.isfinite(largest), e, 0)


def _power(e: jax.Array) -> jax.Array:
  """Returns 2 ** e, 0 below float32 and the largest power above it."""
  return jnp.ldexp(jnp.float32(1), jnp.clip(e, -200, 127))


def _normal(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (rows [N, K] whose largest magnitude is in [1/2, 1), exponents [N] taken out)."""
  x = x.astype(jnp.float32)
  e = _exponent(_largest(x))
  x = x * _power(-e)[:, None]
  # Of a product with zeros nothing may be left, however large the other factor: 0 * inf is NaN.
  # Looked at here, since values below the normal ones may have become zeros.
  return x, jnp.where(_largest(x) == 0, _NOTHING, e)


def _squares(x: Each, exponent: jax.Array) -> jax.Array:
  """Returns the squared norms [N] of the gradients times 2 ** -exponent."""
  if isinstance(x, Outer):
    (left, at), (right, to) = _normal(x.left), _normal(x.right)
    # By halves: the square of a small power would vanish before it is multiplied.
    power = _power(at + to - exponent)
    return (_sum(jnp.square(left)) * power) * (_sum(jnp.square(right)) * power)
  flat = x.astype(jnp.float32).reshape(len(x), -1) * _power(-exponent)[:, None]
  return _sum(jnp.square(flat))


def _sum(x: jax.Array) -> jax.Array:
  """Returns the sums [N] of the rows of x [N, K], none of them negative, off by at most 6 u."""
  n, k = x.shape
  if k > 4 * _FOLDED:
    x = jnp.pad(x, ((0, 0), (0, -k % _FOLDED))).reshape(n, _FOLDED, -1)
    while x.shape[1] > 1:
      half = x.shape[1] // 2
      x = x[:, :half] + x[:, half:]
    x = x[:, 0]
  zero = jnp.float32(0)
  high, low = jax.lax.reduce((x, jnp.zeros_like(x)), (zero, zero), _added, (1,))
  summed: jax.Array = high + low
  return summed


def _added(
  a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
  """Returns the compensated sum (high, low) of two."""
  s, e = sums.two_sum(a[0], b[0])
  return sums.two_sum(s, e + (a[1] + b[1]))
