"""What the walk counts: values that have to be in memory, as long as something needs them."""

import jax
import jax.numpy as jnp
import pytest

from fedjax_mem.engine import liveness

A = 4 * 64 * 64  # bytes of a matrix


def count(f, *shapes, donated=0):
  given = [jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes]
  program = jax.make_jaxpr(f)(*given)
  return liveness.temporaries(program, [1.0] * len(program.jaxpr.invars), donated)


def test_products_are_in_memory_until_they_are_used():
  assert count(lambda a, b: a @ b, (64, 64), (64, 64)) == A
  assert count(lambda a: a @ a @ a @ a, (64, 64)) == 2 * A  # the first is free for the third


def test_elementwise_operations_are_computed_where_they_are_read():
  assert count(lambda a: (2 * jnp.exp(a) + 1).sum(), (64, 64)) == 4
  assert count(lambda a: jnp.exp(a) @ a, (64, 64)) == 2 * A  # a product wants it in memory
  # Read twice, what is costly is kept.
  assert count(lambda a: (jnp.exp(a).sum(), jnp.exp(a).max()), (64, 64)) == 8
  assert count(lambda a: (lambda e: (e.sum(), e.max()))(jnp.exp(a)), (64, 64)) == A + 8


def test_results_take_the_place_of_what_nothing_else_reads():
  assert count(lambda a: jnp.sin(a @ a), (64, 64)) == A
  assert count(lambda a: a + 1, (64, 64), donated=1) == 0
  assert count(lambda a: a + 1, (64, 64)) == A
  assert count(lambda a: a @ a, (64, 64), donated=1) == A  # a product cannot write over its operand


def test_a_row_is_written_into_its_table():
  def write(table, row):
    return table.at[3].set(row)

  assert count(write, (64, 64), (64,), donated=1) == pytest.approx(0, abs=300)


def test_a_loop_keeps_its_carry_and_needs_one_pass_besides():
  def loop(a, xs):
    def body(total, x):
      return total + x @ a, x.sum()

    return jax.lax.scan(body, jnp.zeros((64, 64)), xs)

  # The sum, a row of the loop, one product, and a number of each of 5 passes.
  assert count(loop, (64, 64), (5, 64, 64)) == pytest.approx(3 * A + 5 * 4, abs=4)

  def until(a):
    return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] + c[1].T @ a), (0, a))

  assert count(until, (64, 64)) == pytest.approx(3 * A, abs=100)


def test_of_branches_the_largest_counts():
  def choose(a, on):
    return jax.lax.cond(on[0] > 0, lambda a: (a @ a @ a @ a).sum(), lambda a: a.sum(), a)

  assert count(choose, (64, 64), (1,)) == pytest.approx(2 * A, abs=16)
