"""Ranges of integers in a trace: exact where they follow from shapes, else bounds that hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.engine import ranges

UNIT = 65536


def counted(value):
  """Returns the range of what `value(x)` counts, as the layers that encode report it."""

  def f(x, weight):
    return (weight > 0).astype(jnp.int32) * (value(x) // UNIT)

  return ranges.of_quotients(jax.make_jaxpr(f)(jnp.zeros(100), jnp.float32(1)))[0]


def test_what_follows_from_shapes_is_exact():
  assert counted(lambda x: jnp.int32(1234)) == (1234, 1234)
  assert counted(lambda x: jnp.int32(3) * 70_000 + x.size) == (210_100, 210_100)


def gaps(x):
  """Bytes of indices as gaps, more for each that is long, at most those of a bitmap."""
  order = jnp.argsort(x)
  long = sum((jnp.sum(order >= step, dtype=jnp.int32) for step in (2, 4)), jnp.int32(order.size))
  return jnp.minimum(long, jnp.int32(250)) + 7


def test_what_depends_on_values_is_within_its_bounds():
  assert counted(gaps) == (107, 257)
  for seed in range(5):
    x = np.random.default_rng(seed).normal(size=100).astype(np.float32)
    assert 107 <= int(gaps(x)) <= 257


@pytest.mark.parametrize(
  'value',
  [
    lambda x: x[0].astype(jnp.int32),
    lambda x: jnp.argmax(x).astype(jnp.int32),
    lambda x: jnp.sum(x).astype(jnp.int32) + 1,
  ],
)
def test_what_no_rule_covers_is_unknown(value):
  assert counted(value) is None


def test_results_that_are_no_counts_are_unknown():
  program = jax.make_jaxpr(lambda x: (x + 1, 2 * x))(jnp.int32(0))
  assert ranges.of_quotients(program) == [None, None]


@pytest.mark.parametrize(
  'value, low, high',
  [
    (lambda x: (x > 0).sum(dtype=jnp.int32), 0, 100),
    (lambda x: 100 - (x > 0).sum(dtype=jnp.int32), 0, 100),
    (lambda x: jnp.where(x[0] > 0, jnp.int32(5), jnp.int32(9)), 5, 9),
    (lambda x: jnp.where(jnp.int32(3) > 2, jnp.int32(5), jnp.int32(9)), 5, 5),
    (lambda x: jnp.maximum(jnp.int32(3), (x[0] > 0).astype(jnp.int32)), 3, 3),
    (lambda x: jnp.stack([jnp.int32(3), jnp.int32(8)]).max(), 3, 8),
    (lambda x: (~(x[:7] > 0) & (x[:7] < 1)).sum(dtype=jnp.int32), 0, 7),
    (lambda x: jnp.int32(2) * ((x[0] > 0) | (x[1] > 0)).astype(jnp.int32), 0, 2),
  ],
)
def test_rules_of_single_operations(value, low, high):
  assert counted(value) == (low, high)
