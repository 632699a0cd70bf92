"""Compensated sums against sums in exact arithmetic, in every order."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import tiny

from fedjax_mem.core import rounding
from fedjax_mem.engine.mesh import AXIS, make_mesh
from fedjax_mem.kernels.loops import sums

U = 2.0**-24


def exact(rows) -> np.ndarray:
  """Returns the correctly rounded float64 sum of the rows [k, d]."""
  return np.array([math.fsum(column) for column in np.asarray(rows, np.float64).T])


def value(total) -> np.ndarray:
  return np.asarray(total.high, np.float64) + np.asarray(total.low, np.float64)


def hard(k, d, seed=0) -> np.ndarray:
  """Returns rows [k, d] whose magnitudes differ by up to 2 ** 30, with cancellation."""
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(k, d)) * 2.0 ** rng.integers(-15, 15, (k, d))
  rows[k // 2 :] = -rows[: k - k // 2][::-1] * (1 + rng.normal(size=(k - k // 2, d)) * 1e-5)
  return rows.astype(np.float32)


@pytest.mark.parametrize(('a', 'b'), [(1.0, 2.0**-30), (2.0**-30, 1.0), (3.3, -3.3), (1e30, -1.0)])
def test_two_sum_loses_nothing(a, b):
  a, b = np.float32(a), np.float32(b)
  s, e = jax.jit(sums.two_sum)(a, b)
  assert float(s) == np.float32(np.float64(a) + np.float64(b))
  assert float(s) + float(e) == float(a) + float(b)


@pytest.mark.parametrize('k', [1, 2, 7, 100])
@pytest.mark.parametrize('d', [3, 40_000])
def test_the_error_is_within_the_bound_that_is_proved(k, d):
  rows = hard(k, d)
  magnitude = np.abs(rows.astype(np.float64)).sum(0)
  total = jax.jit(sums.total)(rows)
  assert (np.abs(value(total) - exact(rows)) <= 6 * k * U**2 * magnitude).all()
  assert (np.abs(np.asarray(total.high) - exact(rows)) <= (U + 6 * k * U**2) * magnitude).all()


def test_adding_one_by_one_joining_parts_and_summing_a_stack_are_as_good():
  rows = hard(96, 5)
  one = sums.zeros(rows[0])
  for row in rows:
    one = sums.add(one, jnp.asarray(row))
  halves = sums.join(sums.total(jnp.asarray(rows[:40])), sums.total(jnp.asarray(rows[40:])))
  bound = 6 * 96 * U**2 * np.abs(rows.astype(np.float64)).sum(0)
  for total in (one, halves):
    assert (np.abs(value(total) - exact(rows)) <= bound).all()


@pytest.mark.devices(4)
@pytest.mark.slow
def test_over_devices_the_parts_are_added_in_order_and_all_get_the_same():
  rows = hard(64, 6)
  part = lambda x: sums.over_devices(sums.total(x), AXIS)
  spec = jax.sharding.PartitionSpec
  mapped = jax.shard_map(
    part, mesh=make_mesh(4), in_specs=spec(AXIS), out_specs=spec(), check_vma=False
  )
  total = jax.jit(mapped)(rows)
  parts = [sums.total(jnp.asarray(x)) for x in rows.reshape(4, 16, 6)]
  expected = parts[0]
  for other in parts[1:]:
    expected = sums.join(expected, other)
  tiny.assert_same_bits(total, expected)


def test_integers_are_summed_as_they_are_and_wrap():
  tree = {'i': jnp.full((3, 2), 2**30, jnp.int32), 'f': jnp.ones((3,), jnp.float32)}
  total = sums.total(tree)
  assert total.high['i'].dtype == jnp.int32 and total.high['i'].tolist() == [-(2**30)] * 2
  assert float(total.high['f']) == 3
  more = sums.join(total, sums.add(sums.zeros({'i': tree['i'][0], 'f': tree['f'][0]}), total.high))
  assert more.high['i'].tolist() == [-(2**31)] * 2


def test_the_rounding_that_noise_is_told():
  n = 16_385
  assert rounding(n) == pytest.approx(2 * n * (U + 6 * n * U**2), rel=2e-3)
  assert rounding(n) >= 2 * n * (U + 6 * n * U**2)
  assert rounding(0) == 0 and rounding(n, after=True) > 30 * rounding(n) / 2
