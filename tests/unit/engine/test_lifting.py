"""Programs with other numbers are those that were traced with them, or are kept apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mem.core.examples import side_by_side
from fedjax_mem.engine import lifting

pytestmark = pytest.mark.standard_promotion

X = jnp.linspace(-1.0, 2.0, 5)


@jax.custom_jvp
def doubled(x):
  return 2 * x


doubled.defjvp(lambda x, t: (doubled(x[0]), 2 * t[0]))


def program(rate, table=(1.0, 2.0), power=2, steps=3):
  """A function with numbers in every kind of program within a program."""
  held = np.asarray(table, np.float32)

  def f(x, flag):
    def walk(carry, row):
      return carry * rate + row.sum(), carry

    x, seen = jax.lax.scan(walk, x.sum() + 0.5, jnp.stack([x, x * rate]))
    _, x = jax.lax.while_loop(lambda c: c[0] < steps, lambda c: (c[0] + 1, c[1] - rate), (0, x))
    x = jax.lax.cond(flag, lambda y: y * rate, lambda y: y**power, x)
    x = jax.jit(lambda y: jnp.where(y > rate, y, held[0]))(x) + (x * held).sum()
    return doubled(x + rate), seen, side_by_side(jnp.int32(4))

  return f


def read(f, *arguments):
  return lifting.read(jax.make_jaxpr(f)(*arguments))


@pytest.mark.slow
@pytest.mark.parametrize('flag', [True, False])
def test_a_program_with_the_numbers_of_another_is_the_other(flag):
  ways = [program(0.3), program(0.7, table=(4.0, 0.25)), program(1.5, steps=5)]
  read_ways = [read(f, X, flag) for f in ways]
  assert len({x.structure for x in read_ways}) == 1
  places = lifting.differing(read_ways)
  assert 0 < len(places) < len(read_ways[0].numbers)
  assert all(read_ways[0].movable[place] for place in places)
  run = jax.jit(lifting.lifted(read_ways[0], places))
  columns = lifting.stacked(read_ways, places)
  many = jax.vmap(run, (0, None))(columns, [X, jnp.bool_(flag)])
  for i, f in enumerate(ways):
    alone = jax.tree.leaves(jax.jit(f)(X, flag))
    found = run([x[i] for x in columns], [X, jnp.bool_(flag)])
    for a, b, c in zip(alone, found, many, strict=True):
      np.testing.assert_array_equal(a, b)
      np.testing.assert_allclose(a, c[i], rtol=1e-6)


def test_what_changes_more_than_numbers_is_another_program():
  base = read(program(0.3), X, True).structure
  assert read(program(0.3, power=3), X, True).structure != base
  assert read(program(0.3, table=(1.0, 2.0, 3.0)), X, True).structure != base
  assert read(program(0.3), jnp.zeros(6), True).structure != base
  assert read(program(np.float64(0.3)), X, True).structure == base


def test_numbers_within_a_program_that_cannot_be_rebuilt_stay_where_they_are():
  def rule(size, batched, x):
    return x, batched[0]

  def held(rate):
    f = jax.custom_batching.custom_vmap(lambda x: x * rate)
    f.def_vmap(rule)
    return f

  pair = [read(held(r), X) for r in (np.float32(0.3), np.float32(0.7))]
  (place,) = lifting.differing(pair)
  assert pair[0].structure == pair[1].structure and not pair[0].movable[place]


def test_equal_numbers_are_shared_bit_for_bit():
  zeros = [read(lambda x, z=z: x * z, X) for z in (np.float32(0.0), np.float32(-0.0))]
  nans = [read(lambda x: x * np.float32(np.nan), X) for _ in range(2)]
  assert len(lifting.differing(zeros)) == 1 and lifting.differing(nans) == []
