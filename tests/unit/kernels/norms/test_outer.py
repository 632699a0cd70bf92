"""Clipping of outer products that are not formed: NumPy in float64, and a search for a way out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.kernels.norms import clip, outer

U = 2.0**-24


def formed(grads):
  """Returns the gradients [N, D] in float64."""
  rows = [
    np.einsum('nf,no->nfo', *(np.asarray(y, np.float64) for y in x))
    if isinstance(x, outer.Outer)
    else np.asarray(x, np.float64)
    for x in grads
  ]
  return np.concatenate([x.reshape(len(x), -1) for x in rows], 1)


def some(rng, n=6, scale=1.0):
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * scale**0.5, jnp.float32)
  return [
    outer.Outer(draw(n, 70), draw(n, 9)),
    jnp.asarray(rng.normal(size=(n, 3, 50)) * scale, jnp.float32),
    outer.Outer(draw(n, 2), draw(n, 3)),
    jnp.asarray(rng.normal(size=n) * scale, jnp.float32),
  ]


clip_each = jax.jit(outer.clip_each)


@pytest.mark.slow
@pytest.mark.parametrize('scale', [1.0, 1e30, 1e-30, 1e-3])
def test_it_clips_as_numpy_does_with_the_products_formed(scale):
  grads = some(np.random.default_rng(0), scale=scale)
  rows = formed(grads)
  norms = np.linalg.norm(rows, axis=1)
  bound = float(np.sort(norms)[2:4].mean())
  clipped, seen, finite = clip_each(grads, jnp.float32(bound))
  assert finite.all()
  np.testing.assert_allclose(seen, norms, rtol=1e-6)
  wanted = rows * np.minimum(1, bound / norms)[:, None]
  error = np.linalg.norm(formed(clipped) - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
  assert error.max() < 1e-6
  summed = np.concatenate([np.asarray(x).ravel() for x in outer.total(clipped)])
  np.testing.assert_allclose(summed, wanted.sum(0), atol=2e-6 * bound)


def worst(make, state, bound, rounds=25):
  """Returns the largest norm of a clipped gradient over its bound, found by mutation."""
  rng, best = np.random.default_rng(1), -np.inf
  for _ in range(rounds):
    grads = make(state)
    clipped, _, finite = clip_each(grads, bound)
    kept = formed(outer.keep(finite, clipped))
    over = np.linalg.norm(kept, axis=1) / float(bound)
    best = max(best, over.max())
    # The better half goes on, beside copies of it of which some values are changed.
    half = state[np.argsort(-over)[: len(state) // 2]]
    new = np.where(rng.random(half.shape) < 0.1, half * 2 ** rng.normal(size=half.shape), half)
    state = np.concatenate([half, new.astype(np.float32)])
  return best


@pytest.mark.first(3)
@pytest.mark.parametrize('scale', [1e-30, 1.0, 1e30])
@pytest.mark.parametrize('left', [900, 40, 1])
def test_no_gradient_that_a_search_finds_leaves_the_ball(left, scale):
  rng = np.random.default_rng(left)
  n = 64
  state = np.abs(rng.standard_cauchy((n, left + 30))).astype(np.float32)
  state[0], state[1, 1:] = 0.1, 2.0**-12.6  # Values whose squares all round to the same side.
  top, low = np.float32(scale**0.5), np.float32(scale)

  def make(x):
    with np.errstate(over='ignore', under='ignore'):
      parts = (x[:, :left] * top, x[:, left:-10] * top, x[:, -10:] * low)
    a, b, c = (jnp.asarray(y) for y in parts)
    return [outer.Outer(a, b), c]

  # Three units less than `clip.MARGIN`: two for the radius and its product with the margin.
  assert 1 - 1e-6 < worst(make, state, jnp.float32(scale)) <= 1 + 13 * U < 1 + clip.MARGIN


@pytest.mark.first(3)
@pytest.mark.parametrize('left', [0.0, 1.0, 1e30])
@pytest.mark.parametrize('right', [np.nan, np.inf, 1e30])
def test_products_that_are_not_finite_are_marked_and_leave_no_trace(left, right):
  grads = some(np.random.default_rng(2))
  bad = outer.Outer(grads[0].left.at[1].set(left), grads[0].right.at[1, 0].set(right))
  clipped, _, finite = clip_each([bad, *grads[1:]], jnp.float32(1))
  plain, _, _ = clip_each(grads, jnp.float32(1))
  with np.errstate(over='ignore', invalid='ignore'):
    fine = bool(np.isfinite(np.float32(left) * np.float32(right)))
  assert finite.tolist() == [True, fine, True, True, True, True]
  on = jnp.arange(6) != 1
  for x, y in zip(outer.keep(on, clipped), outer.keep(on, plain), strict=True):
    jax.tree.map(np.testing.assert_array_equal, x, y)
  assert np.isfinite(formed(outer.keep(finite, clipped))).all()


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('value', [0.0, 1.0])
def test_a_value_that_is_not_finite_is_seen_among_many(bad, value):
  many = jnp.full((3, 9000), value)
  spoilt, narrow = many.at[1, 5].set(bad), many[:, :4]
  for grads in ([spoilt], [outer.Outer(spoilt, narrow)], [outer.Outer(narrow, spoilt), narrow]):
    finite = clip_each(grads, jnp.float32(1))[2]
    assert finite.tolist() == [True, False, True]


@pytest.mark.parametrize(
  'left, right, beside, bound',
  [
    ([0.0, 0.0], [1e38] * 20, 1.0, 0.5),
    ([0.0, 0.0], [1e38] * 20, 1e30, 1e29),
    ([0.0, 0.0], [1e3] * 4, 1e-36, 1e-37),
    ([1e-39, 0.0], [3e38] * 4, 1e-36, 1.0),
  ],
)
def test_a_factor_of_zeros_beside_a_huge_one_is_a_product_of_zeros(left, right, beside, bound):
  pair = outer.Outer(jnp.float32([left]), jnp.float32([right]))
  clipped, norms, finite = clip_each([pair, jnp.float32([[beside]])], jnp.float32(bound))
  product, other = outer.total(outer.keep(finite, clipped))
  assert finite.all() and np.isfinite(norms).all()
  assert not product.any()  # of the subnormal too, which XLA takes for zero
  np.testing.assert_allclose(other, [min(beside, bound)], rtol=1e-6)


def test_zeros_stay_zeros():
  grads = [outer.Outer(jnp.zeros((2, 3)), jnp.ones((2, 4))), jnp.zeros((2, 5))]
  clipped, norms, finite = clip_each(grads, jnp.float32(1))
  assert finite.all() and not norms.any() and not formed(clipped).any()


@pytest.mark.slow
def test_a_sum_is_off_by_less_than_the_slack():
  for seed in range(5):
    rng = np.random.default_rng(seed)
    grads = some(rng, n=32)
    # Terms that cancel: what is left is what the additions rounded off.
    grads[0] = outer.Outer(grads[0].left, jnp.sign(rng.normal(size=(32, 1))) * grads[0].right)
    clipped, _, _ = clip_each(grads, jnp.float32(1))
    summed = np.concatenate([np.asarray(x, np.float64).ravel() for x in outer.total(clipped)])
    error = np.linalg.norm(summed - formed(clipped).sum(0))
    assert 0 < error < outer.slack(32, 32) / 2
