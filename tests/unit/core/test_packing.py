"""Trees as few vectors: the values of a pass leaf by leaf, and no copy that is not needed."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.core import packing, tree

MIXED = {
  'a': jnp.arange(6.0).reshape(2, 3),
  'b': {'c': jnp.arange(4, dtype=jnp.int32), 'd': jnp.float32(7)},
  'e': (jnp.full((1, 2), 2.5, jnp.bfloat16), jnp.arange(5.0), jnp.zeros((0, 3))),
}


@pytest.mark.parametrize('mode', ['eager', 'jit'])
def test_packed_trees_open_to_themselves_as_few_vectors(mode):
  opened = lambda x: packing.Packed.of(x).open()
  found = (jax.jit(opened) if mode == 'jit' else opened)(MIXED)
  jax.tree.map(np.testing.assert_array_equal, found, MIXED)
  assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, MIXED)
  # Floats, integers, a scalar, and floats of 16 bits.
  assert [x.shape for x in packing.pack(MIXED)] == [(11,), (4,), (1,), (2,)]
  assert packing.pack({}) == [] and packing.Packed.of(()).open() == ()


def test_packed_rows_open_behind_their_axis():
  rows = jax.vmap(packing.Packed.of)(jax.tree.map(lambda x: jnp.stack([x, x + x]), MIXED))
  for held in (rows, jax.device_get(rows)):
    found = held.open(axes=1)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[1], y + y), found, MIXED)


@pytest.mark.parametrize('mode', ['eager', 'jit', 'vmap'])
def test_at_once_is_leaf_by_leaf(mode):
  one = {'a': values(1, 3, 4), 'b': values(2, 5), 'c': values(3)}
  other = jax.tree.map(lambda x: 0.3 * x + 1, one)
  change = lambda x, y: packing.at_once(lambda u, v: jnp.float32(1.7) * u - v * v, x, y)
  each = lambda x, y: jax.tree.map(lambda u, v: jnp.float32(1.7) * u - v * v, x, y)
  if mode == 'jit':
    change, each = jax.jit(change), jax.jit(each)
  if mode == 'vmap':
    one, other = (jax.tree.map(lambda x: jnp.stack([x, -x]), y) for y in (one, other))
    change, each = jax.vmap(change), jax.vmap(each)
  jax.tree.map(np.testing.assert_array_equal, change(one, other), each(one, other))


def values(seed, *shape):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize('mapped', [False, True])
def test_what_is_cut_up_and_packed_again_is_not_copied(mapped):
  like = {'a': jnp.zeros((30, 40)), 'b': jnp.zeros(5000), 'c': jnp.zeros((2, 2, 2))}

  def run(x, y):
    apart = packing.at_once(jnp.subtract, x, y)
    return packing.Packed.of(tree.keep(tree.finite(apart), apart))

  if mapped:
    run, like = jax.vmap(run), jax.tree.map(lambda x: jnp.stack([x, x]), like)
  text = jax.jit(run).lower(like, like).as_text()
  assert text.count('stablehlo.concatenate') == 2  # of x and of y


@pytest.mark.parametrize('change', [lambda x: x[::-1], lambda x: x[:2], lambda x: [x[0], x[2]]])
def test_leaves_in_another_order_or_fewer_are_packed_as_they_are(change):
  leaves = [values(i, 30 * (i + 1)) for i in range(3)]
  cut = packing.unpack(packing.pack(leaves), leaves)
  np.testing.assert_array_equal(packing.pack(change(cut))[0], jnp.concatenate(change(leaves)))
  assert packing.pack(cut)[0] is packing.pack(cut)[0]


@pytest.mark.slow
def test_nothing_is_held_that_nobody_uses():
  before = len(packing._CUT)
  for program in (jax.jit(lambda x: packing.at_once(jnp.negative, x)), jax.eval_shape):
    x = {'a': values(1, 50), 'b': values(2, 60)}
    made = (
      program(x)
      if program is not jax.eval_shape
      else program(lambda x: packing.at_once(jnp.negative, x), x)
    )
    del made
  gc.collect()
  assert len(packing._CUT) == before
  held = packing.unpack([values(3, 5)], [jnp.zeros(2), jnp.zeros(3)])
  assert len(packing._CUT) == before + 2
  del held
  gc.collect()
  assert len(packing._CUT) == before


@pytest.mark.slow
@pytest.mark.parametrize('like', [{'a': 5}, {'a': 5, 'z': (0, 2)}, {'a': (), 'b': (2, 3)}])
def test_no_trace_outlives_its_program(like):
  like = {name: jnp.ones(shape) for name, shape in like.items()}
  gc.collect()
  before = set(packing._CUT)  # a failed trace of another test may be alive
  with jax.checking_leaks():
    jax.jit(lambda x: packing.at_once(jnp.negative, x))(like)
  made = tree.keep(jnp.bool_(True), like)
  del made
  gc.collect()
  assert set(packing._CUT) <= before


def test_trees_of_other_dtypes_go_leaf_by_leaf():
  one = {'a': jnp.ones(2, jnp.bfloat16), 'b': values(1, 3)}
  other = {'a': values(2, 2), 'b': values(3, 3)}
  minus = lambda x, y: x.astype(jnp.float32) - y
  found = packing.at_once(minus, one, other)
  jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(minus, one, other))
