"""Arithmetic on trees against NumPy, and the edges that it is written for."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.core import shapes, tree

A = {'a': jnp.array([1.0, 2.0]), 'b': (jnp.array([[3.0]]),)}
B = {'a': jnp.array([10.0, 20.0]), 'b': (jnp.array([[30.0]]),)}


def leaves(t):
  return [np.asarray(x).tolist() for x in jax.tree.leaves(t)]


def test_add_sub_scale_zeros():
  assert leaves(tree.add(A, B)) == [[11, 22], [[33]]]
  assert leaves(tree.sub(B, A)) == [[9, 18], [[27]]]
  assert leaves(tree.scale(0.5, A)) == [[0.5, 1], [[1.5]]]
  assert leaves(tree.zeros(jax.eval_shape(lambda: A))) == [[0, 0], [[0]]]


def test_a_scale_of_one_number_a_client_reaches_every_axis():
  stack = {'x': jnp.ones((2, 3, 4)), 'n': jnp.ones(2)}
  scaled = tree.scale(jnp.array([2.0, 5.0]), stack)
  assert scaled['x'][0].min() == scaled['x'][0].max() == 2 and scaled['n'].tolist() == [2, 5]


def test_scale_keeps_the_dtype():
  assert tree.scale(jnp.float32(2), {'x': jnp.ones(2, jnp.int32)})['x'].dtype == jnp.int32


def test_keep_gives_exact_zeros_where_it_is_off_even_for_nan():
  bad = {'x': jnp.array([jnp.nan, jnp.inf]), 'n': jnp.array([1, 2], jnp.int32)}
  assert leaves(tree.keep(jnp.bool_(False), bad)) == [[0, 0], [0, 0]]
  kept = tree.keep(jnp.array([True, False]), {'x': jnp.array([[1.0, 2.0], [jnp.nan, 3.0]])})
  assert leaves(kept) == [[[1, 2], [0, 0]]]


def test_select_by_row():
  chosen = tree.select(jnp.array([True, False]), {'x': jnp.zeros((2, 2))}, {'x': jnp.ones((2, 2))})
  assert leaves(chosen) == [[[0, 0], [1, 1]]]


@pytest.mark.parametrize('dtype', ['float32', 'int32', 'int8', 'uint32'])
def test_total_stays_in_its_dtype(dtype):
  summed = tree.total({'x': jnp.full((3, 2), 100, dtype)})['x']
  assert summed.dtype == dtype
  np.testing.assert_array_equal(summed, np.full((3, 2), 100, dtype).sum(0, dtype=dtype))


def test_norm_is_over_all_leaves():
  assert float(tree.norm(A)) == pytest.approx(14**0.5, rel=1e-6)
  assert float(tree.squared_norm({})) == 0


def test_finite_by_row_and_over_empty_or_integer_trees():
  stack = {'x': jnp.array([[0.0, 1.0], [jnp.inf, 0.0], [0.0, jnp.nan]]), 'n': jnp.arange(3)}
  assert tree.finite(stack, 1).tolist() == [True, False, False]
  assert not bool(tree.finite(stack)) and bool(tree.finite({})) and bool(tree.finite(jnp.arange(2)))
  assert tree.finite({'none': jnp.zeros((3, 0))}, 1).tolist() == [True] * 3
  below = jnp.array([[-1.0, -jnp.inf], [-jnp.nan, 5.0], [-3e38, 3e38]])
  assert tree.finite(below, 1).tolist() == [False, False, True]


@pytest.mark.parametrize('level', [1, 3])
@pytest.mark.parametrize('bad', [jnp.nan, -jnp.inf])
@pytest.mark.parametrize('size', [700, 40000])
def test_one_value_that_is_not_finite_is_found_in_trees_of_any_size(size, bad, level):
  # A maximum over some thousand values or more loses NaN on a CPU.
  values = jnp.arange(1.0, size + 1)
  stack = jnp.stack([values, values.at[size // 3].set(bad), values.at[-1].set(bad), values * bad])
  leaves = {'a': stack, 'b': jnp.ones((4, 5), jnp.bfloat16)}
  compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': level})
  of_rows = compiled(lambda x: tree.finite(x, 1))(leaves)
  each = compiled(jax.vmap(tree.finite))(leaves)
  rows = [jax.tree.map(operator.itemgetter(i), leaves) for i in range(4)]
  one = [bool(compiled(tree.finite)(x)) for x in rows]
  assert of_rows.tolist() == each.tolist() == one == [True, False, False, False]


def test_copies_are_fresh_and_strongly_typed():
  source = {'x': jnp.asarray(1.0), 'y': jnp.ones(2)}
  assert source['x'].weak_type
  copied = tree.copy(source)
  assert not copied['x'].weak_type
  assert copied['y'].unsafe_buffer_pointer() != source['y'].unsafe_buffer_pointer()


def test_size_and_bytes():
  shapes = tree.shapes({'x': jnp.zeros((3, 4)), 'n': jnp.zeros(5, jnp.int8)})
  assert tree.size(shapes) == 17 and tree.nbytes(shapes) == 53


def test_ravel_is_the_leaves_one_after_another():
  leaves = {
    'a': jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
    'b': jnp.float32(7),
    'c': [jnp.zeros(0)],
  }
  flat = tree.ravel(leaves)
  assert flat.dtype == jnp.float32
  np.testing.assert_array_equal(flat, np.arange(8)[[0, 1, 2, 3, 4, 5, 7]])


@pytest.mark.parametrize('axes', [0, 1])
def test_unravel_gives_back_shapes_and_dtypes(axes):
  lead = (5,) * axes
  x = np.arange(5**axes * 7).reshape((*lead, 7))
  made = {'a': x[..., :6].reshape((*lead, 2, 3)), 'b': x[..., 6]}
  made = {'a': jnp.asarray(made['a'], jnp.bfloat16), 'b': jnp.asarray(made['b'], jnp.float32)}
  flat = tree.ravel(made, axes)
  np.testing.assert_array_equal(flat, x)
  back = tree.unravel(flat, made, axes)
  assert shapes.same(back, made)
  jax.tree.map(np.testing.assert_array_equal, back, made)


def test_not_floats_names_the_dtypes():
  mixed = {'a': jnp.zeros(2), 'b': jnp.zeros(2, jnp.int8), 'c': jnp.zeros(1, jnp.bfloat16)}
  assert tree.not_floats(mixed) == [jnp.int8]
