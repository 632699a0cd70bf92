"""A trace as one list: calls are written out, dead code is left out, devices have their parts."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from fedjax_mem.engine import flat, make_mesh


def flatten(f, *shapes, shares=None):
  given = [jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes]
  return flat.flatten(jax.make_jaxpr(f)(*given), shares)


@jax.custom_jvp
def doubled(x):
  return 2 * x


doubled.defjvp(lambda x, t: (doubled(x[0]), 2 * t[0]))


def test_calls_are_written_out_and_what_nothing_reads_is_left_out():
  def f(x):
    unused = jnp.sin(x)
    del unused
    return jax.jit(lambda y: jnp.exp(y))(doubled(x))

  assert [op.name for op in flatten(f, (3,)).ops] == ['mul', 'exp']


def test_sizes_are_bytes():
  whole = flatten(lambda x: x.astype(jnp.int8), (5, 2))
  assert [whole.sizes[x] for x in (*whole.ins, *whole.outs)] == [40, 10]
  key = jax.eval_shape(lambda: jax.random.key(0, impl='threefry2x32'))
  assert flat.nbytes(key) == 8 and flat.nbytes(object()) == 0  # such as a token


def test_a_result_of_constants_alone_has_no_number():
  assert flatten(lambda x: 3.0, (2,)).outs == [None]


def test_parts_of_arguments_are_kept_through_loops():
  def f(table, x):
    def body(carry, row):
      return carry.at[0].add(row), row

    return jax.lax.scan(body, table, x)

  whole = flatten(f, (8, 4), (3, 4), shares=[0.5, 1.0])
  assert [whole.sizes[x] for x in whole.outs] == [64, 48]


def test_so_they_are_through_loops_without_a_length():
  def f(table):
    return jax.lax.while_loop(lambda c: c[0, 0] < 3, lambda c: c + 1, table)

  whole = flatten(f, (8, 4), shares=[0.25])
  assert [whole.sizes[x] for x in whole.outs] == [32]


def test_what_is_computed_from_rows_is_divided_as_they_are():
  whole = flatten(lambda table: (2 * table, table.sum()), (8, 4), shares=[0.5])
  assert [whole.sizes[x] for x in whole.outs] == [64, 4]


@pytest.mark.devices(2)
def test_a_device_has_its_part_of_what_a_shard_map_divides():
  mesh, split = make_mesh(2), PartitionSpec('clients')

  def f(x):
    inner = lambda x: 2 * x
    return jax.shard_map(inner, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)(x) + 1

  whole = flatten(f, (8, 4))
  assert [whole.sizes[x] for x in (*whole.ins, *whole.outs)] == [64, 64]
